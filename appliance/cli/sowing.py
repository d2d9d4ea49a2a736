"""For `millwright first-boot`: where a seed is found, how it is wiped, what is remembered of it, who is told.

<state>/first-boot.json    which steps are done, and of which seed; a step begins anew where the power was cut
"""

import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.config.seed import FILE, LABEL
from appliance.errors import ConfigError, StoreError
from appliance.runtime import files

JOURNAL = "first-boot.json"
ISSUE = "run/issue.d/60-millwright.issue"  # what agetty shows above its prompt
CONSOLE = Path("/dev/console")
MOUNTED = "run/millwright-seed"
BOOT_FOLDERS = ("boot", "efi", "boot/efi")
MOUNT_S = 30
SETTLE_S = 30  # that udev may take over what is plugged in
LOOK_S = 0.25
MAX_JOURNAL = 64 << 10
_FILLS = (b"\xff", b"\0")  # no text begins with either


class Progress(msgspec.Struct, frozen=True):
    """`seed` is the SHA-256 of the seed these steps are of, empty for none; `place` where it lay; `finished`: all of it
    was done, of this seed or one before it."""

    seed: str = ""
    place: str = ""
    steps: tuple[str, ...] = ()
    later: bool = False
    finished: bool = False


class Journal:
    def __init__(self, state: Path) -> None:
        self._path = state / JOURNAL
        self.progress = self._read()

    def _read(self) -> Progress:
        """A journal that is damaged is begun anew: each step bears to be done twice."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_JOURNAL), type=Progress)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return Progress()
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}", "Give the right to read it.") from error

    def begin(self, seed: str, place: str, later: bool) -> None:
        """Steps that were done of the same seed stay done; what is not of a seed stays done in any case."""
        before = self.progress
        kept = before.steps if before.seed == seed else tuple(one for one in before.steps if one in ("vault", "key"))
        self._write(Progress(seed, place, kept, later, before.finished))

    def done(self, step: str) -> None:
        if step not in self.progress.steps:
            self._write(msgspec.structs.replace(self.progress, steps=(*self.progress.steps, step)))

    def finish(self) -> None:
        self._write(msgspec.structs.replace(self.progress, finished=True))

    def _write(self, progress: Progress) -> None:
        if progress != self.progress or not self._path.exists():
            files.write_atomic(self._path, msgspec.json.encode(progress))
        self.progress = progress


# ---- the seed -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patience:
    """With a stick: how long it is looked for where there is no seed at all. Without any, once."""

    seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    rest: Callable[[float], None] = time.sleep


ONE_LOOK = Patience()
NEW_BOX = Patience(12.0)  # a stick is told of by its port when it likes, seconds after the box has started this far


@contextmanager
def found(root: Path, named: Path | None, patience: Patience = ONE_LOOK) -> Iterator[Path | None]:
    """The seed: the one that is named, else that of a labelled stick, which is mounted for as long as the block lasts,
    else that of the boot partition. ConfigError where the named one is not there, or a stick cannot be mounted."""
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"{named} is not there", "Name a seed that can be read with --seed.")
        yield named
        return
    _wait_for_stick(root, patience)
    with _stick(root) as stick:
        folders = [*([stick] if stick else []), *(root / name for name in BOOT_FOLDERS)]
        yield next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def _wait_for_stick(root: Path, patience: Patience) -> None:
    device, folders = _device(root), (MOUNTED, *BOOT_FOLDERS)
    if not patience.seconds or device.exists() or any((root / name / FILE).is_file() for name in folders):
        return
    _settle(device)
    end = patience.clock() + patience.seconds
    while not device.exists() and patience.clock() < end:
        patience.rest(LOOK_S)


def _settle(device: Path) -> None:
    """What is plugged in has its name after this. Where udev is away or stuck, it is looked for all the same."""
    command = ["udevadm", "settle", f"--timeout={SETTLE_S}", f"--exit-if-exists={device}"]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=2 * SETTLE_S, check=False)


def _device(root: Path) -> Path:
    return root / "dev/disk/by-label" / LABEL


@contextmanager
def _stick(root: Path) -> Iterator[Path | None]:
    device, folder = _device(root), root / MOUNTED
    if (folder / FILE).is_file() or not device.exists():
        yield folder if folder.is_dir() else None
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _run("mount", "-o", "nosuid,nodev,noexec,sync", str(device), str(folder))
    try:
        yield folder
    finally:
        _run("umount", str(folder))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOUNT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{command[0]}: {error}", "Take out the stick, or try another one.") from error
    if done.returncode:
        raise ConfigError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}", "Format the stick as FAT32 or ext4.")


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def is_left(path: Path, seed: str) -> bool:
    """Whether this is the seed of that digest, or what a wipe that was cut off has left of one."""
    raw = path.read_bytes()
    return digest(raw) == seed or not raw or raw[:1] in _FILLS


def wipe(path: Path) -> None:
    """Overwrite, sync, remove. A file that is gone is wiped. StoreError where it stays, as on a stick that may only be
    read."""
    try:
        with path.open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for fill in _FILLS:
                file.seek(0)
                file.write(fill * size)
                os.fsync(file.fileno())
        path.unlink()
        files.sync_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"the seed {path} could not be wiped, and holds its secrets still: {error.strerror}",
            "Make it writable and start the box again, or destroy it.",
        ) from error


# ---- who is told ----------------------------------------------------------------------------------------------------


class Screens:
    """Standard output and the consoles. What is `shown` goes to people alone: never where it would be kept."""

    def __init__(self, root: Path, consoles: Sequence[Path]) -> None:
        self._issue = root / ISSUE
        self._consoles = list(consoles) or ([CONSOLE] if root == Path("/") else [])
        self._told: list[str] = []

    def tell(self, *lines: str) -> None:
        print("\n".join(lines), flush=True)
        self._told += lines
        self._on_consoles(lines, also_terminal=False)
        self._post()

    def show(self, *lines: str) -> bool:
        """Whether there was a screen to show it on."""
        return self._on_consoles(lines, also_terminal=True)

    def _on_consoles(self, lines: Sequence[str], also_terminal: bool) -> bool:
        shown = False
        if also_terminal and sys.stdout.isatty():
            print("\n".join(lines), flush=True)
            shown = True
        for console in self._consoles:
            if console == CONSOLE and not _is_terminal(console):
                continue
            with suppress(OSError), console.open("a") as file:
                file.write("\n".join(lines) + "\n")
                shown = True
        return shown

    def _post(self) -> None:
        """Above the prompt of whoever logs in; in memory, so gone at the next boot."""
        with suppress(StoreError):
            files.write_atomic(self._issue, ("\n".join(self._told) + "\n").replace("\\", "\\\\").encode(), 0o644)


def _is_terminal(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
