"""Slots: the fake, and the adapter over tools that answer in the form that systemd 257's own were recorded with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hardware.slots import TRIES, SlotError, Slots, naming, systemd, variables
from hardware.slots.fake import FakeSlots

HASH = "0" * 63


class Tools:
    """bootctl, systemd-sysupdate and lsblk, in the words of `recorded/`."""

    def __init__(self, staged: Path) -> None:
        self.recorded = Path(__file__).parent / "recorded"
        self.staged = staged
        self.entries: dict[str, tuple[int, int] | None] = {"1.1": None}

    def __call__(self, command: Sequence[str], _: float) -> str:
        program, *words = command
        if program == "bootctl" and words == ["--json=short", "list"]:
            return json.dumps([self._entry(version) for version in sorted(self.entries, reverse=True)])
        if program == "bootctl" and words[0] == "unlink":
            del self.entries[words[1].removeprefix("millwright_").removesuffix(".efi")]
            return ""
        if program == systemd.SYSUPDATE and words[-2] == "list":
            facts = json.loads((self.recorded / "sysupdate-list-version.json").read_text())
            return json.dumps(facts | {"version": words[-1], "installed": words[-1] in self.entries})
        if program == systemd.SYSUPDATE and words[-2] == "update":
            self._update(words[-1])
            return ""
        if program == systemd.BLESS_BOOT:
            if self.entries["1.1"] is None:
                raise SlotError("Not booted with boot counting in effect.")
            self.entries["1.1"] = (0, self.entries["1.1"][1])
            return ""
        assert program == "lsblk"
        return (self.recorded / "lsblk.json").read_text()

    def _entry(self, version: str) -> dict[str, Any]:
        blessed, counted = json.loads((self.recorded / "bootctl-list.json").read_text())[::-1]
        counts = self.entries[version]
        file = f"millwright_{version}{f'+{counts[0]}-{counts[1]}' if counts else ''}.efi"
        entry = dict(counted if counts else blessed)
        return entry | {"id": f"millwright_{version}.efi", "version": version, "path": f"/boot/EFI/Linux/{file}"}

    def _update(self, version: str) -> None:
        if version in self.entries:
            return
        if not any(version in path.name for path in self.staged.iterdir()):
            raise SlotError(f"Update '{version}' not found.")
        for other in set(self.entries) - {"1.1"}:
            del self.entries[other]
        self.entries[version] = (TRIES, 0)


def fake(folder: Path) -> FakeSlots:
    return FakeSlots("1.1", 2 << 30)


def adapter(folder: Path) -> systemd.Slots:
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text("IMAGE_VERSION=1.1\n")
    (root / variables.FOLDER).mkdir(parents=True)
    selected = b"\x06\0\0\0" + "millwright_1.1.efi\0".encode("utf-16-le")
    (root / variables.FOLDER / f"LoaderEntrySelected-{variables.LOADER}").write_bytes(selected)
    return systemd.Slots(root, Tools(folder / "staged"), folder / "staged")


@pytest.fixture(params=[fake, adapter], ids=["fake", "systemd"])
def slots(request: pytest.FixtureRequest, tmp_path: Path) -> Slots:
    (tmp_path / "staged").mkdir()
    make: Callable[[Path], Slots] = request.param
    return make(tmp_path)


def stage(folder: Path, version: str) -> Path:
    (folder / "staged" / f"millwright_{version}.efi").write_bytes(b"")
    return folder / "staged"


def test_a_new_box_has_one_version_that_is_good(slots: Slots) -> None:
    standing = slots.standing()
    assert (standing.running, standing.selected) == ("1.1", "millwright_1.1.efi")
    assert standing.blessed
    assert standing.complete == {"1.1"}
    assert (standing.fallback, standing.refused) == ("", ())
    assert slots.capacity() == 2 << 30


def test_an_installed_version_is_to_be_tried(slots: Slots, tmp_path: Path) -> None:
    slots.install("1.2", stage(tmp_path, "1.2"))
    standing = slots.standing()
    assert [one.version for one in standing.entries] == ["1.2", "1.1"]
    new = standing.entry("1.2")
    assert new is not None
    assert (new.tries_left, new.tries_done, new.good, new.bad) == (TRIES, 0, False, False)
    assert naming.parse(new.file) == naming.Name("millwright_1.2", ".efi", TRIES, 0)
    assert standing.running == "1.1"
    assert standing.complete == {"1.1", "1.2"}


def test_installing_twice_is_installing_once(slots: Slots, tmp_path: Path) -> None:
    slots.install("1.2", stage(tmp_path, "1.2"))
    before = slots.standing()
    slots.install("1.2", tmp_path / "staged")
    assert slots.standing() == before


def test_a_third_version_takes_the_slot_that_does_not_run(slots: Slots, tmp_path: Path) -> None:
    slots.install("1.2", stage(tmp_path, "1.2"))
    slots.install("1.3", stage(tmp_path, "1.3"))
    assert [one.version for one in slots.standing().entries] == ["1.3", "1.1"]


def test_nothing_is_installed_of_nothing(slots: Slots, tmp_path: Path) -> None:
    with pytest.raises(SlotError):
        slots.install("1.2", tmp_path / "staged")
    assert [one.version for one in slots.standing().entries] == ["1.1"]


def test_what_is_withdrawn_is_tried_no_more(slots: Slots, tmp_path: Path) -> None:
    slots.install("1.2", stage(tmp_path, "1.2"))
    slots.withdraw("1.2")
    slots.withdraw("1.2")
    assert [one.version for one in slots.standing().entries] == ["1.1"]


def test_what_runs_is_not_withdrawn(slots: Slots) -> None:
    with pytest.raises(SlotError):
        slots.withdraw("1.1")
    assert slots.standing().entry("1.1") is not None


def test_what_was_blessed_is_not_rejected(slots: Slots) -> None:
    with pytest.raises(SlotError):
        slots.reject()
    assert slots.standing().blessed


def test_a_version_without_boots_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    real, imitated = adapter(tmp_path), FakeSlots("1.1", 2 << 30)
    for slots in (real, imitated):
        slots.install("1.2", stage(tmp_path, "1.2"))
    assert imitated.boot(broken=frozenset({"1.2"})) == "1.1"
    real._run.entries["1.2"] = (0, TRIES)  # type: ignore[attr-defined]  # as the boot loader leaves it
    for slots in (real, imitated):
        assert slots.standing().refused == ("1.2",)
        assert slots.standing().entry("1.2").bad  # type: ignore[union-attr]  # it is there


def test_a_folder_that_systemd_does_not_look_in(tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    with pytest.raises(SlotError, match="alone"):
        adapter(tmp_path).install("1.2", tmp_path)
