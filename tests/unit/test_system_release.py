"""Kernels, releases and plans of the operating system: right ones, wrong ones, any bytes at all."""

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.errors import OtaError
from ota.system import kernel as kernels
from ota.system import making
from ota.system import plan as plans
from ota.system import release as releases
from ota.system.kernel import KernelError
from ota.system.plan import Facts
from ota.system.release import Release
from ota.system.updater import check_kernel
from tests import systems

MAKER = systems.Maker()
HASH = "12" * 32
KERNEL = MAKER.kernel("1.2", HASH)


# ---- kernels --------------------------------------------------------------------------------------------------------


def test_what_stands_in_a_kernel() -> None:
    found = kernels.parse(KERNEL)
    assert (found.version, found.roothash) == ("1.2", HASH)
    assert list(found.sections)[:3] == [".osrel", ".cmdline", ".linux"]
    assert len(found.signers) == 1
    assert found.spoken_of
    assert kernels.signed_phases(found) == [1, 2, 3, 4]


def test_measuring_is_what_systemd_says_it_is() -> None:
    """Numbers of systemd-measure 257.13 over the same sections."""
    sections = {
        ".osrel": b"ID=millwright\n", ".cmdline": b"ro quiet", ".linux": b"l" * 4097, ".initrd": b"i" * 512,
        ".uname": b"6.12.1",
    }  # fmt: skip
    found = kernels.parse(systems.pe(sections))
    assert [kernels.predicted(found, phases).hex() for phases in range(1, 5)] == MEASURED
    assert kernels.policy_of(11, bytes.fromhex(MEASURED[0])).hex() == POLICY


MEASURED = [
    "611e7301c002296b5a36ea3d15cd2b54d3bdcb20a8a882807330e11cab11626d",
    "55b9e84943aa26bd886733f09ecab823e690280f2e94b10b670034c1f7a66a43",
    "f4e8700fbe28f8008eea1c514557b66278af33093a0a97b7caf684f54be24eb6",
    "2f5a2c5e70afe9d3837d990b0fd297a75b93671b7d3310b370ce3a678da71db5",
]
POLICY = "6c665e10b07e13d50c7e025dceaa91eb8cfd6b96fdecd4ddea9f735a93b50695"


def test_a_section_more_changes_what_is_measured() -> None:
    one = kernels.parse(systems.pe({".linux": b"x"}))
    other = kernels.parse(systems.pe({".linux": b"x", ".cmdline": b""}))
    ignored = kernels.parse(systems.pe({".linux": b"x", ".pcrsig": b"y", ".text": b"z"}))
    assert kernels.predicted(one) == kernels.predicted(ignored) != kernels.predicted(other)


def test_a_byte_that_changed_is_not_signed_any_more() -> None:
    at = KERNEL.index(b"panic=10")
    found = kernels.parse(KERNEL[:at] + b"panic=11" + KERNEL[at + 8 :])
    assert kernels.signed_phases(found) == []
    assert not found.spoken_of


def test_signatures_by_another_key_are_none() -> None:
    other = systems.Maker(boot=MAKER.boot).kernel("1.2", HASH)
    mine, theirs = kernels.parse(KERNEL), kernels.parse(other)
    mixed = kernels.parse(systems.pe({**_bytes(mine), ".pcrsig": bytes(theirs.sections[".pcrsig"])}))
    assert kernels.signed_phases(mixed) == []


def _bytes(kernel: kernels.Kernel) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in kernel.sections.items()}


@pytest.mark.parametrize(
    "signatures", [b"", b"{}", b"[" * 5000, b'{"sha256": [{"pcrs": [11], "pol": "x", "sig": ""}]}']
)
def test_signatures_that_cannot_be_read(signatures: bytes) -> None:
    found = kernels.parse(systems.pe({**_bytes(kernels.parse(KERNEL)), ".pcrsig": signatures}))
    with pytest.raises(KernelError):
        kernels.signed_phases(found)


@pytest.mark.parametrize(
    "data", [b"", b"MZ", KERNEL[:400], KERNEL[:2000], b"MZ" + b"\xff" * 100, systems.pe({".a": b""})]
)
def test_files_that_are_no_kernels(data: bytes) -> None:
    with pytest.raises(KernelError):
        kernels.parse(data)


@given(at=st.integers(0, 0x400), value=st.integers(0, 255))
def test_any_damage_to_the_head_is_a_kernel_or_an_error(at: int, value: int) -> None:
    damaged = bytearray(KERNEL)
    damaged[at] = value
    try:
        found = kernels.parse(bytes(damaged))
    except KernelError:
        return
    assert sum(map(len, found.sections.values())) <= len(KERNEL) * len(found.sections)


# ---- releases -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    old = MAKER.split(folder / "old", "1.1", systems.root(1))
    new = MAKER.split(folder / "new", "1.2", systems.root(2))
    return making.make("millwright", "x86-64", new, folder / "out", (old,), level=1)


def test_a_release_reads_back(release: Release) -> None:
    assert releases.decode(releases.encode(release)) == release
    assert release.root.used < release.root.length
    whole, difference = release.root.ways
    assert difference.length < whole.length / 10
    assert set(release.boot.pcr11) == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"version": "1.3"},
        {"version": "../x"},
        {"root": None},
        {"name": "a/b"},
        {"more": 1},
    ],
)
def test_releases_that_are_none(release: Release, change: dict[str, object]) -> None:
    plain = msgspec.to_builtins(release) | change
    with pytest.raises(releases.ReleaseError):
        releases.decode(msgspec.json.encode(plain))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_no_release(data: bytes) -> None:
    with pytest.raises(releases.ReleaseError):
        releases.decode(data)


def test_parts_of_two_builds_are_not_mixed(tmp_path: Path) -> None:
    one = MAKER.split(tmp_path / "one", "1.1", systems.root(1))
    other = MAKER.split(tmp_path / "other", "1.1", systems.root(2))
    with pytest.raises(OtaError, match="another root"):
        making.make("millwright", "x86-64", replace(one, kernel=other.kernel), tmp_path / "out", level=1)


@pytest.mark.parametrize(
    ("maker", "version", "roothash", "what"),
    [
        (MAKER, "1.2", "", "another root"),
        (MAKER, "1.1", None, "another version"),
        (systems.Maker(boot=MAKER.boot), "1.2", None, "other values"),
        (systems.Maker(release=MAKER.release), "1.2", None, "other signers"),
    ],
)
def test_a_kernel_that_is_not_the_releases(
    release: Release, maker: systems.Maker, version: str, roothash: str | None, what: str
) -> None:
    kernel = maker.kernel(version, release.tree.roothash if roothash is None else HASH)
    with pytest.raises(OtaError, match=f"the kernel has {what}"):
        check_kernel(kernel, release)
    check_kernel(MAKER.kernel("1.2", release.tree.roothash), release)


@pytest.mark.parametrize(
    ("one", "other"), [("1.2", "1.10"), ("", "0.1"), ("1.2", "1.2.1"), ("nonsense", "0.1"), ("1.2", "2")]
)
def test_versions_have_an_order(one: str, other: str) -> None:
    assert releases.order(one) < releases.order(other)
    assert releases.order(f"{other}.0") == releases.order(other)


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def facts(release: Release) -> Facts:
    return Facts(
        running="1.1",
        architecture="x86-64",
        blessed=True,
        complete=True,
        committed="1.1",
        refused={},
        at_hand=frozenset(way.base for part in (release.root, release.kernel) for way in part.ways if way.base),
        arrived={},
        free_bytes=10 << 30,
        slot_bytes=2 << 30,
        memory_bytes=1 << 30,
        vault="tpm",
        release_key=release.boot.release_key,
        signers=frozenset(release.boot.signers),
        phases=3,
    )


def test_a_plan_that_holds(release: Release, facts: Facts) -> None:
    found = plans.plan(release, facts)
    assert found.ok, found.findings
    assert found.route == "system by a difference, kernel by a difference"
    assert 0 < found.fetch_bytes < found.whole_bytes / 10
    assert {one.name for one in found.findings} == {"version", "route", "space", "slot", "vault", "way back"}
    vault = next(one for one in found.findings if one.name == "vault")
    assert release.boot.pcr11["3"][:16] in vault.detail


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"running": "1.2"}, "version"),
        ({"running": "1.3", "committed": "1.3"}, "version"),
        ({"running": "1.1", "committed": "1.3"}, "version"),
        ({"refused": {"1.2": "rolled-back: no start"}}, "version"),
        ({"architecture": "arm64"}, "board"),
        ({"free_bytes": 1 << 20}, "space"),
        ({"slot_bytes": 1 << 20}, "slot"),
        ({"memory_bytes": 1 << 20}, "memory"),
        ({"signers": frozenset({"0" * 64})}, "vault"),
        ({"signers": frozenset()}, "vault"),
        ({"release_key": "0" * 64}, "vault"),
        ({"phases": 0}, "vault"),
        ({"blessed": False}, "way back"),
        ({"complete": False}, "way back"),
    ],
)
def test_what_forbids_an_update(release: Release, facts: Facts, change: dict[str, object], name: str) -> None:
    found = plans.plan(release, replace(facts, **change))  # type: ignore[arg-type]
    wrong = [one for one in found.findings if not one.ok]
    assert [one.name for one in wrong] == [name]
    assert wrong[0].detail
    assert wrong[0].remedy


def test_a_vault_that_is_not_bound_to_the_system_opens_anyway(release: Release, facts: Facts) -> None:
    for vault in ("", "fingerprint"):
        assert plans.plan(release, replace(facts, vault=vault, signers=frozenset(), phases=0)).ok


def test_without_what_a_difference_starts_from_it_is_whole(release: Release, facts: Facts) -> None:
    found = plans.plan(release, replace(facts, at_hand=frozenset()))
    assert found.route == "system whole, kernel whole"
    assert found.fetch_bytes == found.whole_bytes


def test_what_has_arrived_is_not_fetched_again(release: Release, facts: Facts) -> None:
    whole = release.root.ways[0]
    found = plans.plan(release, replace(facts, arrived={whole.sha256: whole.length}))
    assert found.root == whole
    assert found.fetch_bytes == release.kernel.ways[1].length


def test_the_digest_is_that_of_the_file_without_signatures() -> None:
    bare = systems.pe({".linux": b"x" * 100})
    optional = 0x80 + 24
    counted = bare[: optional + 64] + bare[optional + 68 : optional + 144] + bare[optional + 152 :]
    assert kernels.parse(bare).digest == hashlib.sha256(counted).hexdigest()
