"""Where a seed is looked for, and how long: a stick that comes up late, on a box that is new."""

import argparse
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.cli import first_boot, sowing
from appliance.cli.sowing import Patience
from appliance.config.seed import FILE, LABEL

MOUNT = f'#!/bin/sh\n/bin/cp "$3" "$4/{FILE}"\n'  # the device of these tests is the seed that lies on it
UMOUNT = f'#!/bin/sh\n/bin/rm -f "$1/{FILE}"\n'


@dataclass
class Moments:
    """A time in which looking takes none; `happens` is called as each wait ends."""

    happens: Callable[[int], None] = lambda number: None
    passed_s: float = 0.0
    waits: list[float] = field(default_factory=list)

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, lambda: self.passed_s, self.rest)

    def rest(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.passed_s += seconds
        self.happens(len(self.waits))


@dataclass
class Site:
    """A box's files in a folder. The programs that it calls are these; udevadm writes down what it is called with."""

    root: Path
    programs: Path

    def lay_program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def plug_in(self) -> None:
        device = self.root / "dev/disk/by-label" / LABEL
        device.parent.mkdir(parents=True)
        device.write_text("of the stick")

    def sow(self) -> None:
        (self.root / "boot").mkdir()
        (self.root / "boot" / FILE).write_text("of the boot partition")

    @property
    def settled(self) -> list[str]:
        said = self.programs / "settled"
        return said.read_text().splitlines() if said.exists() else []

    def found(self, patience: Patience) -> str | None:
        with sowing.found(self.root, None, patience) as place:
            return place.read_text() if place else None


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "root", tmp_path / "bin")
    made.root.mkdir()
    made.programs.mkdir()
    for name, text in (("mount", MOUNT), ("umount", UMOUNT)):
        made.lay_program(name, text)
    made.lay_program("udevadm", f'#!/bin/sh\necho "$*" >>{made.programs}/settled\n')
    monkeypatch.setenv("PATH", str(made.programs))
    return made


def test_a_stick_that_comes_up_late_is_waited_for(site: Site) -> None:
    moments = Moments(lambda number: site.plug_in() if number == 20 else None)
    assert site.found(moments.patience(12)) == "of the stick"
    assert len(moments.waits) == 20
    assert not (site.root / sowing.MOUNTED / FILE).exists(), "it is mounted still"


def test_udev_is_through_before_the_time_runs(site: Site) -> None:
    device = site.root / "dev/disk/by-label" / LABEL
    folder, text = device.parent, "of the stick"
    site.lay_program("udevadm", f'#!/bin/sh\n/bin/mkdir -p {folder}\nprintf "%s" "{text}" >{device}\n')
    moments = Moments()
    assert site.found(moments.patience(12)) == text
    assert moments.waits == []


def test_what_udev_is_asked(site: Site) -> None:
    site.found(Moments().patience(1))
    assert site.settled == [f"settle --timeout=30 --exit-if-exists={site.root}/dev/disk/by-label/{LABEL}"]


def test_without_a_stick_it_ends(site: Site) -> None:
    moments = Moments()
    assert site.found(moments.patience(12)) is None
    assert moments.passed_s == pytest.approx(12, abs=sowing.LOOK_S)


@pytest.mark.parametrize("text", ["", "#!/bin/sh\nexit 1\n", "no program"])
def test_without_an_udev_that_answers_it_is_looked_for(site: Site, text: str) -> None:
    (site.programs / "udevadm").unlink()
    if text:
        site.lay_program("udevadm", text)
    moments = Moments(lambda number: site.plug_in() if number == 3 else None)
    assert site.found(moments.patience(12)) == "of the stick"


def test_what_is_there_is_not_waited_for(site: Site) -> None:
    moments = Moments()
    site.sow()
    assert site.found(moments.patience(12)) == "of the boot partition"
    site.plug_in()
    assert site.found(moments.patience(12)) == "of the stick"
    assert (moments.waits, site.settled) == ([], [])


def test_without_patience_there_is_one_look(site: Site) -> None:
    moments = Moments()
    assert site.found(moments.patience(0)) is None
    assert site.found(sowing.ONE_LOOK) is None
    assert (moments.waits, site.settled) == ([], [])


def test_a_box_waits_until_it_was_set_up_and_never_again(tmp_path: Path) -> None:
    args = _asked(tmp_path)
    assert first_boot._patience(args) == sowing.NEW_BOX
    journal = sowing.Journal(tmp_path)
    journal.begin("", "", later=True)
    assert first_boot._patience(args) == sowing.NEW_BOX
    journal.finish()
    assert first_boot._patience(args) == sowing.ONE_LOOK


def test_neither_a_check_nor_another_root_waits(tmp_path: Path) -> None:
    args = _asked(tmp_path)
    args.check = True
    assert first_boot._patience(args) == sowing.ONE_LOOK
    args.check, args.root = False, tmp_path
    assert first_boot._patience(args) == sowing.ONE_LOOK


def _asked(folder: Path) -> argparse.Namespace:
    """Of a box whose state is in this folder."""
    config = folder / "millwright.toml"
    config.write_text(f'[paths]\nstate = "{folder}"\nrun = "{folder}"\n')
    return argparse.Namespace(root=Path("/"), seed=None, check=False, config=config)
