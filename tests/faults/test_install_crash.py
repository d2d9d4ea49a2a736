"""An installation that is ended abruptly at every step: the old model or the new one is in use, whole, and whoever
comes next brings it to the same end.

From a repository every eighth step is tried, and with MILLWRIGHT_KILLS=200 every one.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.inference import cards, models
from appliance.inference.library import Library
from appliance.inference.models import Card, Port
from ota.delta.making import make
from ota.publish import goods
from tests.faults import install_steps
from tests.faults.abrupt import Abrupt
from tests.updates import FLEET, Publisher

STRIDE = 1 if int(os.environ.get("MILLWRIGHT_KILLS", "0")) >= 100 else 8
MOST_STEPS = 400


def bundle(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(version.encode() * 100)
    cards.write(folder, Card("toy", version, "none", [Port("x", [-1, 4])], [Port("y", [-1, 2])], files={}))
    return folder


@pytest.fixture
def abrupt(repository: Path) -> Iterator[Abrupt]:
    with Abrupt(repository, install_steps.__file__) as process:
        yield process


def in_use(root: Path) -> str:
    """The version that a reader of the library finds, verified to the last byte."""
    folder = Library(root / "models").current("toy")
    assert folder is not None
    return models.load(folder).card.version


@pytest.mark.parametrize(
    ("ruling", "end", "version"),
    [("good", "confirmed", "2.0.0"), ("bad", "refused", "1.0.0"), ("worse", "rolled-back", "1.0.0")],
)
def test_any_step_may_be_the_last(tmp_path: Path, abrupt: Abrupt, ruling: str, end: str, version: str) -> None:
    for step in range(1, MOST_STEPS):
        root = tmp_path / str(step)
        Library(root / "models").add(bundle(root / "old", "1.0.0"))
        bundle(root / "new", "2.0.0")
        ended = abrupt(step, root, ruling)
        assert in_use(root) in ({"1.0.0"} if ruling == "bad" else {"1.0.0", "2.0.0"})
        book = install_steps.play(root, ruling).book
        assert [one.step.value for one in book.history] == [end]
        assert in_use(root) == version
        assert bool(book.refused) == (end != "confirmed")
        assert not list((root / "update" / "arriving").iterdir())
        shutil.rmtree(root)
        if ended:
            assert step > 30
            return
    raise AssertionError("it never came to its end")


def test_any_step_of_an_update_from_a_repository_may_be_the_last(tmp_path: Path, abrupt: Abrupt) -> None:
    publisher = Publisher(tmp_path / "workshop")
    old, new = bundle(tmp_path / "old", "1.0.0"), bundle(tmp_path / "new", "2.0.0")
    publisher.add(old)
    publisher.add(new)
    goods.add_deltas(publisher.workshop, FLEET, "toy", 1, make)
    publisher.publish()
    kinds = set()
    for step in range(1, MOST_STEPS, STRIDE):
        root = tmp_path / str(step)
        Library(root / "models").add(old)
        shutil.copytree(new, root / "new")
        (root / "origin").write_text(str(publisher.workshop.repository))
        ended = abrupt(step, root, "good")
        assert in_use(root) in {"1.0.0", "2.0.0"}
        working = install_steps.installer(root, "good")
        kinds.add(working.book.active.step.value if working.book.active else "none")
        book = install_steps.play(root, "good").book
        assert [one.step.value for one in book.history] == ["confirmed"]
        assert in_use(root) == "2.0.0"
        assert [path for path in (root / "update" / "supply").rglob("*") if path.is_file()] == []
        shutil.rmtree(root)
        if ended:
            assert step > 50
            assert {"downloading", "reconstructing", "compiling", "promoted"} <= kinds
            return
    raise AssertionError("it never came to its end")
