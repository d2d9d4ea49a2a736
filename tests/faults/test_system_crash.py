"""The installation of a system is ended abruptly at every step, and the box restarts: the update comes to its end, in
the slots, in the book and in the vault."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ota.publish import systems as publishing
from ota.system import making
from tests.faults import system_steps
from tests.faults.abrupt import Abrupt
from tests.faults.system_steps import NAME, NEW, OLD, Disk
from tests.systems import Maker, root

MOST_STEPS = 200


@pytest.fixture
def abrupt(repository: Path) -> Iterator[Abrupt]:
    with Abrupt(repository, system_steps.__file__) as process:
        yield process


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release, and its parts where a repository has them."""
    folder = tmp_path_factory.mktemp("release")
    new = Maker().split(folder / NEW, NEW, root(2))
    made = making.make(NAME, "x86-64", new, folder, (), level=1)
    (folder / "targets/os").mkdir(parents=True)
    (folder / "parts").rename(folder / "targets" / publishing.releases.PARTS)
    assert made.version == NEW
    return folder


@pytest.mark.parametrize(("broken", "end"), [(frozenset(), "committed"), (frozenset({NEW}), "rolled-back")])
def test_any_step_may_be_the_last(tmp_path: Path, abrupt: Abrupt, out: Path, broken: frozenset[str], end: str) -> None:
    seen = set()
    for step in range(1, MOST_STEPS):
        box = tmp_path / str(step)
        disk = Disk(box / "disk")
        ended = abrupt(step, box, out)
        written = disk.slot(NEW).whole
        disk.restart(broken)
        working = system_steps.updater(box, out)
        seen.add((written, working.book.active.step.value if working.book.active else ""))
        working.settle(3)
        if not written:
            system_steps.play(box, out)
            disk.restart(broken)
            working = system_steps.updater(box, out)
            working.settle(4)
        assert [one.step.value for one in working.book.history] == [end]
        assert (working.book.active, bool(working.book.refused)) == (None, bool(broken))
        assert disk.slot(NEW).running == (OLD if broken else NEW)
        assert broken or disk.vault == "new"
        assert {path.name for path in (box / "os").rglob("*") if path.is_file()} == {"book.json", "release.json"}
        shutil.rmtree(box)
        if ended:
            assert {(False, "fetching"), (False, "writing"), (True, "writing"), (True, "waiting")} <= seen
            return
    raise AssertionError("it never came to its end")
