"""The library of models, ended abruptly at every step of every change: what stands is whole; the change can be made
again."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.inference import cards, models
from appliance.inference.library import Library
from appliance.inference.models import Card, Port
from tests.faults import library_changes
from tests.faults.abrupt import Abrupt

MOST_STEPS = 60


def bundle(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "model.tflite").write_bytes(version.encode())
    cards.write(folder, Card("toy", version, "none", [Port("x", [-1, 4])], [Port("y", [-1, 2])], files={}))
    return folder


def before(root: Path, change: str) -> Library:
    """toy@1.0.0 is there and current; to be used, 2.0.0 is there, too; to be removed, 2.0.0 is current."""
    root.mkdir()
    library = Library(root / "models")
    library.add(bundle(root / "old", "1.0.0"))
    bundle(root / "new", "2.0.0")
    if change != "add":
        library.add(root / "new")
    if change == "remove":
        library.use(library.find("toy@2.0.0"))
    return library


@pytest.fixture
def abrupt(repository: Path) -> Iterator[Abrupt]:
    with Abrupt(repository, library_changes.__file__) as process:
        yield process


def check(library: Library, expected: set[str], current: set[str]) -> None:
    """Every bundle that can be seen is whole; the name stands for one of those that it may."""
    entries, problems = library.survey()
    assert problems == []
    for entry in entries:
        models.load(entry.folder)
    assert {entry.card.version for entry in entries} >= expected
    folder = library.current("toy")
    assert folder is not None
    assert models.load(folder).card.version in current


@pytest.mark.parametrize(
    ("change", "stands", "current", "after"),
    [
        ("add", {"1.0.0"}, {"1.0.0"}, {"1.0.0", "2.0.0"}),
        ("use", {"1.0.0", "2.0.0"}, {"1.0.0", "2.0.0"}, {"1.0.0", "2.0.0"}),
        ("remove", {"2.0.0"}, {"2.0.0"}, {"2.0.0"}),
    ],
)
def test_any_step_may_be_the_last(
    tmp_path: Path, abrupt: Abrupt, change: str, stands: set[str], current: set[str], after: set[str]
) -> None:
    for step in range(1, MOST_STEPS):
        root = tmp_path / str(step)
        library = before(root, change)
        ended = abrupt(step, root, change)
        check(library, stands, current)
        again(library, root, change)
        check(library, after, current if change != "use" else {"2.0.0"})
        assert {entry.card.version for entry in library.entries()} == after
        shutil.rmtree(root)
        if ended:
            assert step > {"add": 8, "use": 8, "remove": 6}[change]
            return
    raise AssertionError("it never came to its end")


def again(library: Library, root: Path, change: str) -> None:
    """The same change, by whoever comes next; one that had taken effect has no effect now."""
    if change == "add":
        library.add(root / "new")
    elif change == "use":
        library.use(library.find("toy@2.0.0"))
    else:
        for entry in library.entries():
            if entry.card.version == "1.0.0":
                library.remove(entry)
