"""Names of boot entries, the guard before a blessing, and what systemd's tools say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.slots import SlotError, guard, naming, systemd, variables

STEMS = st.from_regex(r"[a-z]{1,12}_[0-9]{1,3}(\.[0-9]{1,3}){0,3}", fullmatch=True)
COUNTS = st.none() | st.integers(0, 99)


@given(stem=STEMS, left=COUNTS, done=st.integers(0, 99))
def test_a_name_gives_back_what_it_was_made_of(stem: str, left: int | None, done: int) -> None:
    counted = "" if left is None else f"+{left}-{done}"
    name = naming.parse(f"\\EFI\\Linux\\{stem}{counted}.efi")
    assert name == naming.Name(stem, ".efi", left, 0 if left is None else done)
    assert name.plain == f"{stem}.efi"
    assert name.version == stem.partition("_")[2]


@given(text=st.text(max_size=300))
def test_any_text_is_a_name_or_none(text: str) -> None:
    name = naming.parse(text)
    assert name is None or name.suffix in (".efi", ".conf")


def test_a_name_with_boots_left_only() -> None:
    assert naming.parse("/EFI/Linux/millwright_1.2+3.efi") == naming.Name("millwright_1.2", ".efi", 3, 0)


@pytest.mark.parametrize(
    ("counted", "selected", "running", "bless"),
    [
        ("\\EFI\\Linux\\millwright_1.2+2-1.efi", "millwright_1.2.efi", "1.2", True),
        ("\\EFI\\Linux\\millwright_1.2+2-1.efi", "millwright_1.2+2-1.efi", "1.2", True),
        ("/EFI/Linux/MILLWRIGHT_1.2+2-1.EFI".replace(".EFI", ".efi"), "millwright_1.2+3-0.efi", "", True),
        # Firmware refused 1.2, the boot loader came again and took 1.1: the brick.
        ("\\EFI\\Linux\\millwright_1.2+2-1.efi", "millwright_1.1.efi", "1.1", False),
        ("\\EFI\\Linux\\millwright_1.2+2-1.efi", "millwright_1.2.efi", "1.1", False),
        (None, "millwright_1.1.efi", "1.1", False),
        ("\\EFI\\Linux\\millwright_1.2+2-1.efi", None, "1.2", False),
        ("\\EFI\\Linux\\", "millwright_1.2.efi", "1.2", False),
        ("", "", "", False),
    ],
)
def test_only_the_boot_that_runs_is_blessed(
    counted: str | None, selected: str | None, running: str, bless: bool
) -> None:
    ruling = guard.judge(counted, selected, running)
    assert (ruling.bless, bool(ruling.reason)) == (bless, True)


@given(one=STEMS, other=STEMS, counts=st.tuples(COUNTS, COUNTS))
def test_two_versions_are_never_taken_for_one(one: str, other: str, counts: tuple[int | None, int | None]) -> None:
    names = [stem + ("" if left is None else f"+{left}-0") for stem, left in zip((one, other), counts, strict=True)]
    assert guard.judge(f"\\EFI\\Linux\\{names[0]}.efi", f"{names[1]}.efi").bless == (one == other)


def test_variables_of_the_boot_loader(tmp_path: Path) -> None:
    folder = tmp_path / variables.FOLDER
    folder.mkdir(parents=True)
    value = b"\x06\0\0\0" + "millwright_1.2.efi\0".encode("utf-16-le")
    (folder / f"LoaderEntrySelected-{variables.LOADER}").write_bytes(value)
    (folder / f"LoaderBootCountPath-{variables.LOADER}").write_bytes(b"\x06\0\0\0\x00")
    assert variables.text("LoaderEntrySelected", tmp_path) == "millwright_1.2.efi"
    assert variables.text("LoaderBootCountPath", tmp_path) is None
    assert variables.text("LoaderInfo", tmp_path) is None


def test_the_version_of_the_system_that_runs(tmp_path: Path) -> None:
    assert variables.image_version(tmp_path) == ""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text('ID=debian\nIMAGE_VERSION="1.4"\n')
    assert variables.image_version(tmp_path) == "1.4"


BROKEN = ["", "null", "{", "[" * 5000, '"text"', "7"]


@pytest.mark.parametrize("said", BROKEN)
@pytest.mark.parametrize("read", [systemd.boot_entries, systemd.installed, systemd.smallest_root])
def test_answers_that_are_none(read: Callable[[str], object], said: str) -> None:
    with pytest.raises(SlotError):
        read(said)


def test_a_kernel_image_with_several_profiles_is_one_system() -> None:
    path, words = "/boot/EFI/Linux/millwright_1.2+3-0.efi", f"roothash={'a' * 64}"
    said = [
        {"type": "type2", "id": "millwright_1.2.efi@install", "path": path, "options": "millwright.install"},
        {"type": "type2", "id": "millwright_1.2.efi", "path": path, "options": words},
        {"type": "type2", "id": "millwright_1.2.efi@2", "path": path, "options": None},
    ]
    (entry,) = systemd.boot_entries(json.dumps(said))
    assert (entry.version, entry.roothash, entry.tries_left) == ("1.2", "a" * 64, 3)


def test_answers_about_something_else() -> None:
    assert (
        systemd.boot_entries('[1, null, {"type": "type1"}, {"type": "type2", "path": "/EFI/Linux/debian.efi"}]') == []
    )
    assert not systemd.installed("{}")
    for said in ('{"blockdevices": 3}', '{"blockdevices": [null, {"parttype": null, "size": "9"}]}'):
        with pytest.raises(SlotError, match="no partition"):
            systemd.smallest_root(said)


def test_the_smaller_root_counts() -> None:
    root, verity = systemd.ROOTS[0], "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
    parts = [{"name": "p1", "parttype": kind, "size": size} for kind, size in ((root, 9), (verity, 1), (root, 7))]
    assert systemd.smallest_root(json.dumps({"blockdevices": [{"name": "d", "size": 99, "children": parts}]})) == 7


def test_a_program_that_is_missing_or_fails() -> None:
    for command in (["/no/such/program"], ["false"], ["sleep", "60"]):
        with pytest.raises(SlotError):
            systemd.run(command, 0.05)
