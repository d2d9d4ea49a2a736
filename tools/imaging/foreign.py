"""Programs of another processor on this machine, for the time of a build: what packages call while they are installed.

The kernel's binfmt_misc is told to start them in the builder's QEMU, unless something on this machine does it already.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.imaging import places
from tools.imaging.builder import BuilderError
from tools.imaging.places import Places

SYSTEM = Path("/proc/sys/fs/binfmt_misc")
NAME = "millwright-aarch64"
INTERPRETER = "usr/bin/qemu-aarch64"  # in the builder; linked statically
MACHINE = "b700"  # in the header of ELF: AArch64, low byte first
_MAGIC = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + bytes.fromhex(MACHINE)
_MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"  # any ABI; a program, or one that moves


@contextmanager
def runs(where: Places) -> Iterator[None]:
    """Programs of the image's architecture can be started. BuilderError where this machine does not allow it."""
    if where.architecture == places.X86:
        yield
        return
    mounted = None if (SYSTEM / "register").exists() else where.cache / "binfmt"
    folder = mounted or SYSTEM
    try:
        if mounted:
            mounted.mkdir(exist_ok=True)
            _mount(mounted)
        ours = not known(path.read_text() for path in folder.iterdir() if path.name not in ("register", "status"))
        if ours:
            (folder / "register").write_bytes(line(where.builder / INTERPRETER))
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuilderError(
            f"{error}: an image of {where.architecture} wants the kernel's binfmt_misc, which is missing or not ours "
            "to set. As root, outside of containers: modprobe binfmt_misc; or apt-get install qemu-user-binfmt"
        ) from error
    try:
        yield
    finally:
        if ours:
            (folder / NAME).write_text("-1")
        if mounted:
            subprocess.run(["umount", str(mounted)], check=True)


def line(interpreter: Path) -> bytes:
    """What the kernel is told. P: the name it was called by is kept; F: opened now, for every root to come."""
    magic, mask = ("".join(f"\\x{byte:02x}" for byte in word) for word in (_MAGIC, _MASK))
    return f":{NAME}:M::{magic}:{mask}:{interpreter}:PF".encode()


def known(entries: Iterator[str]) -> bool:
    """Whether one of these starts such programs, in every root."""
    return any(
        entry.startswith("enabled")
        and re.search(r"^flags: .*F", entry, re.MULTILINE) is not None
        and re.search(rf"^magic 7f454c46[0-9a-f]{{28}}{MACHINE}", entry, re.MULTILINE) is not None
        for entry in entries
    )


def _mount(folder: Path) -> None:
    subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(folder)], check=True)
