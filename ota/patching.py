"""Deltas applied in a process of their own, which can be stopped."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ota.errors import OtaError, StorageError

_LOOK_S = 0.2  # between two looks whether it shall go on
_WRONG = (3, 4)  # exit codes of `ota.delta` for a patch that is damaged, and for one of another model
_MAX_SAID = 500  # characters


class WrongDeltaError(OtaError):
    """A delta that does not make what it says; the way around it is taken."""


Apply = Callable[[Path, Path, Path], None]  # old folder, patch, new folder; WrongDeltaError, StorageError


def in_a_process_of_its_own(old: Path, patch: Path, new: Path, goes_on: Callable[[], None] = lambda: None) -> None:
    """Apply a delta where no other library has changed how floats are rounded, and where memory is given back.
    `goes_on` may raise to stop; what was made so far is used by the next call."""
    command = [sys.executable, "-P", "-m", "ota.delta", "apply", str(old), str(patch), str(new)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as applying:
        try:
            said = _waited(applying, goes_on)
        except BaseException:
            applying.kill()
            raise
    if applying.returncode in _WRONG:
        raise WrongDeltaError(patch.name, said)
    if applying.returncode:
        raise StorageError(f"the delta could not be applied: {said}", "It is tried again later.")


def _waited(applying: "subprocess.Popen[str]", goes_on: Callable[[], None]) -> str:
    """The end of what it said."""
    while True:
        goes_on()
        try:
            return applying.communicate(timeout=_LOOK_S)[1].strip()[-_MAX_SAID:]
        except subprocess.TimeoutExpired:
            continue
