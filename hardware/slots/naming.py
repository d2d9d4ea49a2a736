"""Names of boot entries with their counters: `millwright_1.2+2-1.efi` has two boots left and had one. Pure.

The rules are those of systemd's automatic boot assessment.
"""

import re
from typing import NamedTuple

_COUNTED = re.compile(r"(?P<stem>.+?)(?:\+(?P<left>[0-9]{1,9})(?:-(?P<done>[0-9]{1,9}))?)?(?P<suffix>\.(?:efi|conf))")
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)*")
MAX_NAME = 255


class Name(NamedTuple):
    stem: str
    suffix: str
    left: int | None = None
    done: int = 0

    @property
    def plain(self) -> str:
        """Without counters."""
        return self.stem + self.suffix

    @property
    def version(self) -> str:
        """What stands behind the last underscore, where that is a version; else empty."""
        version = self.stem.rpartition("_")[2]
        return version if _VERSION.fullmatch(version) else ""


def parse(path: str) -> Name | None:
    """Of a path as the boot loader writes it, with backslashes, or as the system does; None where it is no entry."""
    name = re.split(r"[\\/]", path)[-1]
    found = _COUNTED.fullmatch(name) if 0 < len(name) <= MAX_NAME else None
    if found is None:
        return None
    left, done = found["left"], found["done"]
    return Name(found["stem"], found["suffix"], int(left) if left else None, int(done) if done else 0)


def order(version: str) -> tuple[int, ...]:
    """To compare versions of digits and dots; one that is none comes before all others."""
    return tuple(int(part) for part in version.split(".")) if _VERSION.fullmatch(version) else ()
