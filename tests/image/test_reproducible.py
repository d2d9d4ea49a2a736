"""Two builds of the same tree are the same image, bit for bit."""

import hashlib
from pathlib import Path

from tests.image.boxes import EPOCH, OLD
from tools.imaging import building
from tools.imaging.places import Places


def test_two_builds_are_bit_identical(where: Places, old: Path) -> None:
    again = building.build(where, building.order("dev", OLD, EPOCH), afresh=True)
    first, second = _digests(old), _digests(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("millwright_*")):
        if path.suffix in (".raw", ".efi") and not path.is_symlink():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
