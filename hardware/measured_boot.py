"""What PCR 11 will be once a unified kernel image has started: computed from the file. Pure.

systemd's stub measures the sections of the image that starts, systemd then a word for each phase of the start. An
update makes the value known before the restart, so that what is bound to it opens afterwards.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

SECTIONS = (  # in the order in which the stub measures them; .pcrsig, which signs the result, cannot be among them
    *(".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"),
    *(".profile", ".dtbauto", ".hwids"),
)
STARTED = ("enter-initrd", "leave-initrd", "sysinit", "ready")
MAX_SECTIONS = 96
_REGISTER = 32  # bytes of SHA-256
_SECTION = struct.Struct("<8sIIII16x")


class ImageError(ValueError):
    """These bytes are no kernel image of this kind."""


def register(image: bytes, phases: Sequence[str] = STARTED) -> bytes:
    """PCR 11 of the SHA-256 bank, 32 bytes. ImageError."""
    found = dict(_sections(image))
    if ".linux" not in found or ".profile" in found:  # a profile is chosen at the start
        raise ImageError("it has no kernel, or several profiles")
    value = bytes(_REGISTER)
    for name in SECTIONS:
        if name in found:
            value = _extended(_extended(value, name.encode() + b"\0"), found[name])
    for phase in phases:
        value = _extended(value, phase.encode())
    return value


def _extended(value: bytes, event: bytes | memoryview) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(event).digest()).digest()


def _sections(image: bytes) -> Iterator[tuple[str, memoryview]]:
    """By name; of several with the same name the first."""
    try:
        (header,) = struct.unpack_from("<I", image, 0x3C)
        magic, number, optional = struct.unpack_from("<4s2xH12xH", image, header)
        if image[:2] != b"MZ" or magic != b"PE\0\0" or number > MAX_SECTIONS:
            raise ImageError("it is no program for UEFI firmware")
        seen = set()
        for index in range(number):
            at = header + 24 + optional + index * _SECTION.size
            raw, size, _, stored, offset = _SECTION.unpack_from(image, at)
            name = raw.rstrip(b"\0").decode("ascii")
            if size > stored or offset + size > len(image):
                raise ImageError(f"its section {name} is cut off")
            if name not in seen:
                seen.add(name)
                yield name, memoryview(image)[offset : offset + size]
    except (struct.error, UnicodeDecodeError) as error:
        raise ImageError("it is cut off, or no program for UEFI firmware") from error
