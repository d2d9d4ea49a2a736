"""Files of ours in folders that others may write to."""

import os
import stat
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.runtime import files


def test_a_link_laid_where_the_draft_goes_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "backup"
    victim.write_text("precious")
    (tmp_path / f".backup.{os.getpid()}.new").symlink_to(victim)
    files.write_atomic(path, b"new")
    assert (victim.read_text(), path.read_bytes(), path.is_symlink()) == ("precious", b"new", False)


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "backup"
    victim.write_text("precious")
    path.symlink_to(victim)
    files.write_atomic(path, b"new")
    assert (victim.read_text(), path.read_bytes()) == ("precious", b"new")


def test_a_link_in_the_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(StoreError), files.held(tmp_path / "lock", "works"):
        pass
    assert not (tmp_path / "made").exists()


def test_it_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write_atomic(tmp_path / "file", b"x")
        with files.held(tmp_path / "lock", "works"):
            pass
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {files.PRIVATE}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")
def test_what_root_writes_in_the_folder_of_a_service_belongs_to_the_service(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    os.chown(folder, 4711, 4712)
    files.write_atomic(folder / "file", b"data")
    with files.held(folder / "lock", "is tried"):
        owners = {(path.name, path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
    assert owners == {("file", 4711, 4712), ("lock", 4711, 4712)}
