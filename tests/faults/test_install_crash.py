"""An installation that is ended abruptly at every step: the old model or the new one is in use, whole, and whoever
comes next brings it to the same end."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.inference import cards, models
from appliance.inference.library import Library
from appliance.inference.models import Card, Port
from tests.faults import install_steps

SCRIPT = Path(install_steps.__file__)
MOST_STEPS = 150


def bundle(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(version.encode() * 100)
    cards.write(folder, Card("toy", version, "none", [Port("x", [-1, 4])], [Port("y", [-1, 2])], files={}))
    return folder


def crash(repository: Path, root: Path, ruling: str, step: int) -> bool:
    """Whether it came to its end."""
    words = [sys.executable, str(SCRIPT), str(root), ruling, str(step)]
    done = subprocess.run(
        words, cwd=repository, env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 9), done.stderr
    return done.stdout == "done\n"


def in_use(root: Path) -> str:
    """The version that a reader of the library finds, verified to the last byte."""
    folder = Library(root / "models").current("toy")
    assert folder is not None
    return models.load(folder).card.version


@pytest.mark.parametrize(
    ("ruling", "end", "version"),
    [("good", "confirmed", "2.0.0"), ("bad", "refused", "1.0.0"), ("worse", "rolled-back", "1.0.0")],
)
def test_any_step_may_be_the_last(tmp_path: Path, repository: Path, ruling: str, end: str, version: str) -> None:
    for step in range(1, MOST_STEPS):
        root = tmp_path / str(step)
        Library(root / "models").add(bundle(root / "old", "1.0.0"))
        bundle(root / "new", "2.0.0")
        ended = crash(repository, root, ruling, step)
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
