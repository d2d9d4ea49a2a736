"""What an update of the system would mean: bytes, space, downtime, the vault, the way back; and what speaks against it.
Pure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ota.system.release import Packed, Part, Release, order

MEMORY_BYTES = 48 << 20  # applying a difference, measured, and some more
RESERVE_BYTES = 64 << 20  # that stay free


@dataclass(frozen=True)
class Facts:
    """Of this box. `at_hand`: hashes of roots and kernels that it has; `arrived`: bytes of packed files that need not
    be fetched any more."""

    running: str
    architecture: str
    blessed: bool  # the system that runs was blessed
    complete: bool  # and can be started again
    committed: str  # the newest version that ever was; empty: none
    refused: Mapping[str, str]  # versions that were given up here, and why
    at_hand: frozenset[str]
    arrived: Mapping[str, int]
    free_bytes: int
    slot_bytes: int
    memory_bytes: int
    vault: str  # the backend that binds it; empty: there is no vault
    release_key: str  # of the running kernel, as in `Boot`; empty where it has none
    signers: frozenset[str]
    phases: int  # of the boot that have passed when the vault opens; 0: PCR 11 is not what the kernel's sections say
    start_s: float = 0.0  # the last start took so long; 0: not known


@dataclass(frozen=True)
class Finding:
    """`ok` is False for what forbids the update."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Plan:
    release: Release
    root: Packed | None
    kernel: Packed | None
    fetch_bytes: int
    whole_bytes: int  # what it would be without differences
    space_bytes: int
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        return all(one.ok for one in self.findings)

    @property
    def route(self) -> str:
        ways = [("system", self.root), ("kernel", self.kernel)]
        told = [f"{name} {_told(way)}" for name, way in ways if way is not None]
        return ", ".join(told)


def _told(way: Packed) -> str:
    return "by a difference" if way.form == "difference" else "whole"


def plan(release: Release, facts: Facts) -> Plan:
    root, kernel = cheapest(release.root, facts), cheapest(release.kernel, facts)
    chosen = [way for way in (root, kernel) if way is not None]
    fetch_bytes = sum(_left(way, facts) for way in chosen)
    whole = sum(min((way.length for way in part.ways if way.base is None), default=0) for part in _parts(release))
    made = release.root.used + release.kernel.length + release.tree.tree.blocks * 33
    space = fetch_bytes + made + RESERVE_BYTES
    bare = Plan(release, root, kernel, fetch_bytes, whole, space)
    findings = [*_version(release, facts), *_room(bare, facts), _vault(release, facts), _way_back(facts)]
    return Plan(release, root, kernel, fetch_bytes, whole, space, tuple(findings))


def cheapest(part: Part, facts: Facts) -> Packed | None:
    """Of the ways that this box can take, the one with the fewest bytes to come; None where there is none."""
    usable = [way for way in part.ways if way.base is None or (way.form == "difference" and way.base in facts.at_hand)]
    return min(usable, key=lambda way: (_left(way, facts), way.length), default=None)


def _left(way: Packed, facts: Facts) -> int:
    return max(way.length - facts.arrived.get(way.sha256, 0), 0)


def _parts(release: Release) -> tuple[Part, Part]:
    return release.root, release.kernel


def _version(release: Release, facts: Facts) -> Iterator[Finding]:
    version, running = release.version, facts.running
    if release.architecture != facts.architecture:
        detail = f"it is for {release.architecture}, this box is {facts.architecture}"
        yield Finding("board", False, detail, "Ask for the release of this box's kind.")
    if version in facts.refused:
        remedy = "A fixed release has a higher version; --again tries this one once more."
        yield Finding("version", False, f"{version} was given up here: {facts.refused[version]}", remedy)
    elif facts.committed and order(version) < order(facts.committed):
        detail = f"{version} is older than {facts.committed}, which was committed"
        yield Finding("version", False, detail, "Publish what is wanted under a higher version.")
    elif running and order(version) <= order(running):
        yield Finding("version", False, f"{version} is not newer than {running}, which runs", "There is nothing to do.")
    else:
        yield Finding("version", True, f"{running or 'an unknown version'} -> {version}")


def _room(found: Plan, facts: Facts) -> Iterator[Finding]:
    if found.root is None or found.kernel is None:
        yield Finding("route", False, "no way leads there from what this box has", "Publish it whole.")
    else:
        detail = f"{found.fetch_bytes:,} bytes to fetch ({found.route}); whole it is {found.whole_bytes:,}"
        yield Finding("route", True, detail)
    enough = found.space_bytes <= facts.free_bytes
    detail = f"{found.space_bytes:,} bytes are needed, {facts.free_bytes:,} are free"
    yield Finding("space", enough, detail, "" if enough else "Make room: lower record.budget_mb, or remove models.")
    fits = found.release.root.length <= facts.slot_bytes
    detail = f"{found.release.root.length:,} bytes in a slot of {facts.slot_bytes:,}"
    yield Finding("slot", fits, detail, "" if fits else "The disk must be installed anew.")
    if found.root is not None and found.root.form == "difference" and facts.memory_bytes < MEMORY_BYTES:
        detail = f"{MEMORY_BYTES:,} bytes of memory are needed, {facts.memory_bytes:,} are free"
        yield Finding("memory", False, detail, "Stop something, or publish it whole.")


def _vault(release: Release, facts: Facts) -> Finding:
    """Whether it opens under the new system, by itself."""
    if not facts.vault:
        return Finding("vault", True, "there is none")
    if facts.vault != "tpm":
        return Finding("vault", True, f"it opens as before: '{facts.vault}' is not bound to the system")
    keep = "Have the recovery key at hand and move the vault first: millwright vault recover."
    if set(release.boot.signers) != facts.signers:
        detail = "it is signed for Secure Boot by other certificates: PCR 7 will be another, and the TPM refuses"
        return Finding("vault", False, detail, keep)
    if facts.release_key and release.boot.release_key != facts.release_key:
        return Finding("vault", False, "its PCR 11 is signed by another key than the vault is bound to", keep)
    if facts.release_key and str(facts.phases) not in release.boot.pcr11:
        return Finding("vault", False, "no signature of its PCR 11 is for the moment at which the vault opens", keep)
    value = release.boot.pcr11.get(str(facts.phases), "")
    bound = f"PCR 11 will be {value[:16]}..., signed" if facts.release_key else "releases are not signed here"
    return Finding("vault", True, f"it will open: {bound}; PCR 7 stays, as the same certificates sign")


def _way_back(facts: Facts) -> Finding:
    if not facts.blessed or not facts.complete:
        why = "the system that runs was not blessed yet" if facts.complete else "the system that runs is not whole"
        return Finding(
            "way back", False, f"{why}: it is no way back", "Wait for millwright health; see systemctl --failed."
        )
    tells = f", which took {facts.start_s:.0f} s the last time" if facts.start_s else ""
    detail = f"{facts.running} stays beside it, and comes back by itself after three starts in vain; one restart{tells}"
    return Finding("way back", True, detail)
