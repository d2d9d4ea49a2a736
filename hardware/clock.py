"""Whether the time of day can be believed: never below the floor, and whether anything keeps it right.

A box without a battery starts in the past; a broken one in the far future. The floor is the newest time that this
software and this machine have certainly seen: the release, the system's own floor files, and what the caller knows.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RELEASED_S = 1_793_491_200  # 2026-11-01 00:00 UTC, a little before this release; moved with each
CEILING_S = 30 * 365 * 86_400  # a clock this far above the floor is broken, too
# systemd keeps its own floors as times of modification of these files.
FLOOR_FILES = ("usr/lib/clock-epoch", "var/lib/systemd/timesync/clock")
SYNCHRONISED = "run/systemd/timesync/synchronized"

STA_UNSYNC = 0x0040


@dataclass(frozen=True)
class Clock:
    """Times are seconds since 1970, UTC."""

    now_s: float
    floor_s: float
    synchronised: bool
    source: str = ""  # who says that it is synchronised: timesyncd, kernel
    reason: str = ""  # why it cannot be believed; empty where it can
    remedy: str = ""

    @property
    def plausible(self) -> bool:
        return not self.reason


class _Timex(ctypes.Structure):
    """The beginning of the kernel's `struct timex`, and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def kernel_synchronised() -> bool:
    """adjtimex(2), which changes nothing here: an NTP daemon that keeps the clock clears its UNSYNC bit."""
    state = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(state)) < 0:
        return False
    return not state.status & STA_UNSYNC


def find(
    now_s: float, known_s: float = 0.0, root: Path = Path("/"), kernel: Callable[[], bool] = kernel_synchronised
) -> Clock:
    """The facts at `now_s`; `known_s` is a time the caller has already seen (of its newest record, say)."""
    floor = max(RELEASED_S, known_s, *(_modified(root / name) for name in FLOOR_FILES))
    source = "timesyncd" if (root / SYNCHRONISED).exists() else "kernel" if kernel() else ""
    reason = ""
    if now_s < floor:
        reason = f"the clock says {_shown(now_s)}, but it is at least {_shown(floor)}"
    elif now_s > floor + CEILING_S:
        reason = f"the clock says {_shown(now_s)}, which is decades ahead"
    remedy = "Set the clock or start a time service (timedatectl set-ntp true)." if reason or not source else ""
    return Clock(now_s, floor, bool(source), source, reason, remedy)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _shown(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"
