"""The slots through systemd's own tools: bootctl, systemd-sysupdate, the firmware's variables, /etc/os-release.

`_run` is everything that is asked of another program; tests hand in what such programs have said.
"""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hardware.slots import Entry, SlotError, Standing, naming, variables

SYSUPDATE = "/usr/lib/systemd/systemd-sysupdate"
BLESS_BOOT = "/usr/lib/systemd/systemd-bless-boot"
STAGED = "/var/lib/millwright/os/staged"  # where the transfer files of the image look for a new version
PATIENCE_S = 60
WRITING_S = 1800  # a slow stick, 2 GiB
MAX_ANSWER = 1 << 20
MAX_ENTRIES = 64
# Types of partitions for a root file system, of the architectures there are images for: x86-64 and arm64.
ROOTS = ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "b921b045-1df0-41c3-af44-4c6f280d3fae")
_ROOTHASH = re.compile(r"(?:^|\s)(?:usr|root)hash=([0-9a-fA-F]{64})(?=\s|$)")

Run = Callable[[Sequence[str], float], str]


def run(command: Sequence[str], patience_s: float) -> str:
    """What it writes. SlotError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=patience_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlotError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise SlotError(f"{' '.join(command)}: {done.stderr.strip()[-500:] or f'ended with {done.returncode}'}")
    if len(done.stdout) > MAX_ANSWER:
        raise SlotError(f"{command[0]} says more than {MAX_ANSWER} characters")
    return done.stdout


class Slots:
    """`hardware.slots.Slots` on a machine that was started by systemd-boot."""

    def __init__(self, root: Path = Path("/"), run: Run = run, staged: Path = Path(STAGED)) -> None:
        self._root, self._run, self._staged = root, run, staged

    def standing(self) -> Standing:
        entries = boot_entries(self._run(["bootctl", "--json=short", "list"], PATIENCE_S))
        complete = frozenset(one.version for one in entries if self._complete(one.version))
        selected = variables.text("LoaderEntrySelected", self._root) or ""
        return Standing(variables.image_version(self._root), tuple(entries), complete, selected)

    def install(self, version: str, folder: Path) -> None:
        if folder.resolve() != self._staged.resolve():
            raise SlotError(f"{folder}: the system's parts are taken from {self._staged} alone")
        self._run([SYSUPDATE, "--verify=no", "update", version], WRITING_S)
        if not self._complete(version):
            raise SlotError(f"systemd-sysupdate wrote {version}, and it is not whole")

    def withdraw(self, version: str) -> None:
        standing = self.standing()
        entry = standing.entry(version)
        if version == standing.running:
            raise SlotError(f"{version} is the version that runs")
        if entry is not None:
            self._run(["bootctl", "unlink", naming_id(entry.file)], PATIENCE_S)

    def reject(self) -> None:
        self._run([BLESS_BOOT, "bad"], PATIENCE_S)

    def capacity(self) -> int:
        listed = self._run(["lsblk", "--json", "--bytes", "--output", "NAME,PARTTYPE,SIZE"], PATIENCE_S)
        return smallest_root(listed)

    def _complete(self, version: str) -> bool:
        return bool(version) and installed(self._run([SYSUPDATE, "--json=short", "list", version], PATIENCE_S))


def boot_entries(text: str) -> list[Entry]:
    """What `bootctl --json=short list` says, systems of ours alone, in the boot loader's order. SlotError.

    A kernel image with several profiles is listed as often, under one path: it is one system."""
    found: dict[str, Entry] = {}
    for one in _json(text, list)[:MAX_ENTRIES]:
        if not isinstance(one, dict) or one.get("type") != "type2":
            continue
        name = naming.parse(str(one.get("path", "")))
        if name is not None and name.version:
            roothash = _ROOTHASH.search(str(one.get("options") or ""))
            plain = str(one["path"]).rpartition("/")[2]
            entry = Entry(name.version, plain, roothash[1].lower() if roothash else "", name.left, name.done)
            if plain not in found or not found[plain].roothash:
                found[plain] = entry
    return list(found.values())


def installed(text: str) -> bool:
    """Whether `systemd-sysupdate --json=short list VERSION` says that every part of it is on the disk."""
    facts = _json(text, dict)
    return facts.get("installed") is True and facts.get("incomplete") is not True


def smallest_root(text: str) -> int:
    """Of `lsblk --json --bytes`: the smaller of the partitions for a root file system. SlotError."""
    disks = _json(text, dict).get("blockdevices")
    sizes = [int(one["size"]) for one in _flat(disks if isinstance(disks, list) else []) if _is_root(one)]
    if not sizes:
        raise SlotError("no partition is one for a root file system")
    return min(sizes)


def naming_id(file: str) -> str:
    """A boot entry's file as bootctl calls it: without counters."""
    name = naming.parse(file)
    if name is None:
        raise SlotError(f"'{file}' is no name of a boot entry")
    return name.plain


def _is_root(one: dict[str, Any]) -> bool:
    return str(one.get("parttype") or "").lower() in ROOTS and isinstance(one.get("size"), int)


def _flat(devices: list[Any]) -> list[dict[str, Any]]:
    found = []
    for one in devices[:MAX_ENTRIES]:
        if isinstance(one, dict):
            children = one.get("children")
            found += [one, *_flat(children if isinstance(children, list) else [])]
    return found


def _json(text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SlotError(f"an answer that is not JSON: {text[:80]!r}") from error
    if not isinstance(value, kind):
        raise SlotError(f"an answer of another form: {text[:80]!r}")
    return value
