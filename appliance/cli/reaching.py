"""The network's part in the trial of a system: the links that the box had are noted when an update is applied, and a
trial must have them again, or nobody could reach the box to take the update back.

The note is not taken away. It counts for a boot that the boot loader counts, of the version it names, and for no other.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance.cli.findings import Finding
from appliance.errors import DamagedError, MillwrightError
from appliance.runtime import files
from hardware import links
from hardware.links import Link
from hardware.slots import variables

NOTE = Path("os/links.json")  # of the state folder, beside the updater's book
MAX_NOTE = 64 << 10
SETTLED_S = 60.0  # after the start of the kernel whatever has a cable has found its carrier
COUNTED = "LoaderBootCountPath"


class Note(msgspec.Struct, frozen=True):
    """What a later version adds to it is passed over."""

    version: str  # that is tried
    links: tuple[Link, ...]


def note(state: Path, version: str, there: tuple[Link, ...]) -> None:
    """StoreError where it cannot be written."""
    files.write_sealed(state / NOTE, msgspec.json.encode(Note(version, there)))


def findings(state: Path, up_s: float, root: Path = Path("/")) -> Iterator[Finding]:
    """`up_s`: since the start of the kernel. None where nothing is on trial, or no links were noted."""
    if variables.text(COUNTED, root) is None:
        return
    try:
        noted = _noted(state / NOTE)
    except MillwrightError as error:
        yield Finding("links", "fail", error.message, "Apply the update once more: it notes the links anew.")
        return
    if noted is None or noted.version != variables.image_version(root):
        return
    for one in links.compare(noted.links, links.find(root), up_s >= SETTLED_S):
        yield Finding(f"link {one.link.name}", "ok" if one.ok else "fail", one.detail, one.remedy)


def _noted(path: Path) -> Note | None:
    raw = files.read_sealed(path, MAX_NOTE)
    try:
        return None if raw is None else msgspec.json.decode(raw, type=Note)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is no note of links: {error}") from error
