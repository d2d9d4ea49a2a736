"""The files of boards, and which of them a device tree names."""

from pathlib import Path

import pytest

from hardware import boards
from hardware.boards import BoardError

RIGHT = 'model = "A"\ncompatible = "a,b"\nsoc = "C"\nconsole = "ttyS0,115200"\n'


def tree(root: Path, *compatible: str) -> Path:
    path = root / boards.COMPATIBLE
    path.parent.mkdir(parents=True)
    path.write_bytes("".join(f"{word}\0" for word in compatible).encode())
    return root


def test_every_file_is_in_order_and_no_two_are_of_one_board() -> None:
    found = boards.known()
    assert len(found) >= 3
    assert len({board.compatible for board in found.values()}) == len(found)


def test_a_running_board_is_known_by_its_device_tree(tmp_path: Path) -> None:
    found = boards.find(tree(tmp_path, "friendlyarm,nanopi-r5s", "rockchip,rk3568"))
    assert found is not None
    assert found.model == "FriendlyElec NanoPi R5S"


def test_machines_that_no_file_describes(tmp_path: Path) -> None:
    assert boards.find(tmp_path) is None
    assert boards.find(tree(tmp_path, "somebody,else")) is None


@pytest.mark.parametrize(
    "text",
    ["", RIGHT + "more = 1\n", RIGHT.replace("a,b", "a"), RIGHT.replace("115200", "x"), RIGHT + 'boot = "grub"\n', "="],
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(BoardError, match=r"x\.toml"):
        boards.known(tmp_path)


def test_a_right_one(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(RIGHT)
    assert boards.known(tmp_path)["x"].boot == "efi"
