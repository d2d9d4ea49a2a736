"""The watchdog that restarts a box that hangs: is there one, does it run, and was it the reason of the last restart?

systemd feeds it (`RuntimeWatchdogSec=`), and it feeds systemd's own view of the services. `softdog` is the kernel's: it
does not help where the kernel itself hangs. Read from /sys/class/watchdog; `root` is another file tree in tests.
"""

from dataclasses import dataclass
from pathlib import Path

FOLDER = "sys/class/watchdog"
SOFTWARE = ("Software Watchdog",)
RESET_BY_WATCHDOG = 0x20  # WDIOF_CARDRESET of the kernel's watchdog interface
MAX_TEXT = 4096


@dataclass(frozen=True)
class Watchdog:
    """`name` is empty where the box has none."""

    name: str = ""
    identity: str = ""
    timeout_s: int = 0
    active: bool = False  # somebody feeds it; where nobody does, it does not bite
    software: bool = False
    has_reset: bool = False  # it caused the last restart, as far as the board tells
    reason: str = ""  # why it does not protect this box fully; empty where it does
    remedy: str = ""


def find(root: Path = Path("/")) -> Watchdog:
    """The one that protects most: hardware before software, one that is fed before one that is not."""
    folder = root / FOLDER
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [_read(folder / name) for name in names if name.startswith("watchdog")]
    if not found:
        remedy = "Load the driver of the board's watchdog, or softdog; without one a box that hangs stays so."
        return Watchdog(reason="this box has no watchdog", remedy=remedy)
    return min(found, key=lambda one: (not one.active, one.software, one.name))


def _read(folder: Path) -> Watchdog:
    identity, status = _text(folder / "identity"), _number(folder / "bootstatus")
    software, active = identity in SOFTWARE, _text(folder / "state") == "active"
    reason = remedy = ""
    if not active:
        reason, remedy = "nobody feeds it", "RuntimeWatchdogSec=60s in /etc/systemd/system.conf.d, then restart."
    elif software:
        reason, remedy = "it is the kernel's own", "Switch on the board's watchdog in its firmware, if it has one."
    has_reset = bool(status & RESET_BY_WATCHDOG)
    timeout = _number(folder / "timeout")
    return Watchdog(folder.name, identity, timeout, active, software, has_reset, reason, remedy)


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT).decode("utf-8", "replace").strip()
    except OSError:
        return ""
