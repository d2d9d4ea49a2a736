"""From two versions to a patch and back: files, folders, what is refused, and that it leaves nothing."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import cbor2
import pytest

from ota.delta import applying, container, generic, journal, making, packing
from ota.delta.__main__ import main
from ota.delta.container import Change, Content, Way
from ota.delta.errors import DeltaError, MismatchError, PatchError
from tests import deltas

Made = tuple[Path, Path, Path]  # the old version, the new one, the patch


def made(folder: Path, old: bytes, new: bytes) -> Made:
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    making.make(folder / "old", folder / "new", folder / "patch", making.Settings(tools=False))
    return folder / "old", folder / "new", folder / "patch"


@pytest.fixture
def small(tmp_path: Path) -> Made:
    """A patch of a few hundred bytes."""
    dice = random.Random(1)
    old = dice.randbytes(3000)
    return made(tmp_path, old, old[:1000] + b"new" + old[1200:])


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A patch by covers, in many frames, with a record in the journal after each."""
    for module in (generic, packing, applying):
        monkeypatch.setattr(module, "FRAME", 5000)
    monkeypatch.setattr(applying, "SYNC_BYTES", 1)
    monkeypatch.setattr(generic, "DICTIONARY_BYTES", 0)
    dice = random.Random(2)
    old = dice.randbytes(60_000)
    return made(tmp_path, old, old[30_000:] + dice.randbytes(500) + old[:30_000])


def clean(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


def way(patch: Path) -> Way:
    with applying.File(patch) as file:
        return container.read(file, file.size).changes[0].way


def test_a_file(small: Made, tmp_path: Path) -> None:
    old, new, patch = small
    outcome = applying.apply(old, patch, tmp_path / "given")
    assert outcome == applying.Outcome(new.stat().st_size)
    assert (tmp_path / "given").read_bytes() == new.read_bytes()
    assert clean(tmp_path)


def test_a_patch_costs_less_than_a_kilobyte_beyond_what_is_new(small: Made) -> None:
    assert small[2].stat().st_size < 400


def test_a_file_in_many_frames(several: Made, tmp_path: Path) -> None:
    old, new, patch = several
    assert way(patch) is Way.COVERS
    shown: list[tuple[int, int]] = []
    applying.apply(old, patch, tmp_path / "given", lambda done, total: shown.append((done, total)))
    assert (tmp_path / "given").read_bytes() == new.read_bytes()
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
    assert shown[-1] == (60_500, 60_500)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"", b""), (b"", b"new"), (b"old", b""), (b"same", b"same"), (bytes(100_000), bytes(200_000)), (b"a", b"b")],
)
def test_files_of_any_kind(tmp_path: Path, old: bytes, new: bytes) -> None:
    before, after, patch = made(tmp_path, old, new)
    applying.apply(before, patch, tmp_path / "given")
    assert (tmp_path / "given").read_bytes() == after.read_bytes()


def test_once_more_is_no_fault(small: Made, tmp_path: Path) -> None:
    old, _, patch = small
    applying.apply(old, patch, tmp_path / "given")
    assert applying.apply(old, patch, tmp_path / "given").was_there


# What is in the way


def test_what_is_there_already_stays(small: Made, tmp_path: Path) -> None:
    old, _, patch = small
    (tmp_path / "given").write_bytes(b"mine")
    with pytest.raises(DeltaError, match="is there already"):
        applying.apply(old, patch, tmp_path / "given")
    assert (tmp_path / "given").read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["old", "patch"])
def test_neither_the_old_version_nor_the_patch_is_written(small: Made, tmp_path: Path, place: str) -> None:
    old, _, patch = small
    before = old.read_bytes(), patch.read_bytes()
    with pytest.raises(DeltaError, match="name another place"):
        applying.apply(old, patch, tmp_path / place)
    assert before == (old.read_bytes(), patch.read_bytes())


def test_an_old_version_under_the_hidden_name_is_not_removed(small: Made, tmp_path: Path) -> None:
    old, _, patch = small
    hidden = old.rename(tmp_path / ".given.part")
    with pytest.raises(DeltaError, match="name another place"):
        applying.apply(hidden, patch, tmp_path / "given")
    assert hidden.exists()


def test_another_old_version_is_refused(small: Made, tmp_path: Path) -> None:
    old, _, patch = small
    data = bytearray(old.read_bytes())
    data[17] ^= 1
    old.write_bytes(data)
    with pytest.raises(MismatchError, match="not what the patch was made for"):
        applying.apply(old, patch, tmp_path / "given")
    assert not (tmp_path / "given").exists()
    assert clean(tmp_path)


def test_no_space_is_told_before_anything_is_written(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "SPARE_BYTES", 1 << 60)
    with pytest.raises(DeltaError, match="bytes are needed"):
        applying.apply(small[0], small[2], tmp_path / "given")
    assert clean(tmp_path)


def test_two_at_once_do_not_meet(small: Made, tmp_path: Path) -> None:
    old, new, patch = small
    with (
        journal.Journal(tmp_path / ".given.journal", b"of another"),
        pytest.raises(DeltaError, match="another process applies"),
    ):
        applying.apply(old, patch, tmp_path / "given")
    applying.apply(old, patch, tmp_path / "given")
    assert (tmp_path / "given").read_bytes() == new.read_bytes()


# Patches that are damaged


def refused(made: Made, patch: bytes, place: Path) -> None:
    """It is refused, nothing is there, the old version is as it was."""
    before = made[0].read_bytes()
    bad = place.parent / "bad"
    bad.write_bytes(patch)
    with pytest.raises((PatchError, MismatchError)):
        applying.apply(made[0], bad, place)
    assert not place.exists()
    assert clean(place.parent)
    assert made[0].read_bytes() == before


def test_each_byte_of_a_patch_matters(small: Made, tmp_path: Path) -> None:
    data = small[2].read_bytes()
    for place in range(len(data)):
        refused(small, data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :], tmp_path / "given")


def test_each_byte_of_a_patch_of_tensors_matters(tmp_path: Path) -> None:
    old, new = deltas.pair(tmp_path, width=16)
    making.make(old, new, tmp_path / "patch", making.Settings(tools=False))
    data = (tmp_path / "patch").read_bytes()
    for place in range(0, len(data), max(1, len(data) // 400)):
        wrong = data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :]
        refused((old, new, tmp_path / "patch"), wrong, tmp_path / "given")


def test_a_patch_cut_off_anywhere(small: Made, tmp_path: Path) -> None:
    data = small[2].read_bytes()
    for size in range(0, len(data), 5):
        refused(small, data[:size], tmp_path / "given")
    refused(small, data + b"\0", tmp_path / "given")


def test_frames_in_another_order(several: Made, tmp_path: Path) -> None:
    with applying.File(several[2]) as file:
        manifest = container.read(file, file.size)
        [(_, frames)] = manifest.frames()
        bodies = [file.read(frame.offset, frame.size) for frame in frames]
    head = several[2].read_bytes()[: manifest.begin]
    assert bodies[0] != bodies[1]
    refused(several, head + b"".join([bodies[1], bodies[0], *bodies[2:]]), tmp_path / "given")


def test_patches_broken_at_random(several: Made, tmp_path: Path) -> None:
    data = several[2].read_bytes()
    for wrong in deltas.broken(data, 3, 150):
        if wrong != data:
            refused(several, wrong, tmp_path / "given")


def test_broken_segments_are_refused_by_whoever_decodes_them(tmp_path: Path) -> None:
    """The index fits, so that what is broken is decoded before its digest shows it."""
    old, new = deltas.pair(tmp_path, width=16)
    making.make(old, new, tmp_path / "patch", making.Settings(tools=False))
    with applying.File(tmp_path / "patch") as file:
        [(change, frames)] = container.read(file, file.size).frames()
        whole = [file.read(frame.offset, frame.size) for frame in frames]
    assert change.way is Way.TENSORS
    dice = random.Random(5)
    for _ in range(250):
        bodies, number = list(whole), dice.randrange(len(whole))
        [bodies[number]] = deltas.broken(whole[number], dice.getrandbits(32), 1)
        if bodies == whole:
            continue
        digests = [frame.digest for frame in frames]
        digests[0] = container.frame_digest(bodies[0])  # the tables give nothing by themselves
        index = b"".join(container.entry(len(body), digest) for body, digest in zip(bodies, digests, strict=True))
        bad = container.written([change], False, index) + b"".join(bodies)
        (tmp_path / "bad").write_bytes(bad)
        try:
            applying.apply(old, tmp_path / "bad", tmp_path / "given")
        except (PatchError, MismatchError):
            assert not (tmp_path / "given").exists()
        else:  # tables may say the same in other words
            assert number == 0
            assert (tmp_path / "given").read_bytes() == new.read_bytes()
            (tmp_path / "given").unlink()
        assert clean(tmp_path)


# Patches that are hostile: their digests are right


def hostile(changes: list[Change], frames: list[tuple[bytes, bytes]], folder: bool = False) -> bytes:
    """Frames with what they claim to give."""
    index = b"".join(container.entry(len(frame), container.frame_digest(frame, given)) for frame, given in frames)
    return container.written(changes, folder, index) + b"".join(frame for frame, _ in frames)


def content(data: bytes) -> Content:
    return Content(hashlib.sha256(data).digest(), len(data))


def segment(numbers: list[int], payload: bytes = b"") -> bytes:
    head = cbor2.dumps(numbers)
    return (len(head) << 1).to_bytes(4, "little") + head + payload


HUGE = Content(bytes(32), 1 << 45)
COPIED = segment([0, 0, 3000, 1, 0])
COPIED_BACK = segment([0, -3000, 3000, 1, 0])
HOSTILE: dict[str, Callable[[Content], tuple[list[Change], list[tuple[bytes, bytes]]]]] = {
    "more than the disk holds": lambda old: ([Change("model", HUGE, Way.COVERS)], []),
    "a file that gives nothing": lambda old: ([Change("model", content(b"x"), Way.COVERS)], []),
    "tensors without tables": lambda old: ([Change("model", content(b"x"), Way.TENSORS, 0, "model", old)], []),
    "tables too large": lambda old: (
        [Change("model", content(b"x"), Way.TENSORS, 1, "model", old)],
        [(bytes(1 << 17), b"")],
    ),
    "two dictionaries": lambda old: (
        [Change("model", content(b"x"), Way.DICTIONARY, 2, "model", old)],
        [(b"1", b""), (b"2", b"")],
    ),
    "the old file over and over": lambda old: (
        [Change("model", old, Way.TENSORS, 9, "model", old)],
        [(b"", b""), (COPIED, b""), *[(COPIED_BACK, b"")] * 7],
    ),
    "beyond the old file": lambda old: (
        [Change("model", old, Way.TENSORS, 2, "model", old)],
        [(b"", b""), (segment([0, 0, 3000, 1, 1]), b"")],
    ),
    "before the old file": lambda old: (
        [Change("model", old, Way.TENSORS, 2, "model", old)],
        [(b"", b""), (segment([0, 0, 3000, 1, -1]), b"")],
    ),
    "a segment too large": lambda old: (
        [Change("model", Content(bytes(32), 5 << 20), Way.TENSORS, 2, "model", old)],
        [(b"", b""), (segment([1, 0, 5 << 20, 0], b"x"), b"")],
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_patches(small: Made, tmp_path: Path, name: str) -> None:
    changes, frames = HOSTILE[name](content(small[0].read_bytes()))
    (tmp_path / "bad").write_bytes(hostile(changes, frames))
    with pytest.raises(DeltaError):
        applying.apply(small[0], tmp_path / "bad", tmp_path / "given")
    assert clean(tmp_path)
    assert not (tmp_path / "given").exists()


def test_a_zstd_bomb_as_a_dictionary_frame(small: Made, tmp_path: Path) -> None:
    old = small[0].read_bytes()
    bomb = packing.by_dictionary(old, bytes(1 << 24))
    change = Change("model", content(b"x" * 100), Way.DICTIONARY, 1, "model", content(old))
    refused(small, hostile([change], [(bomb, b"x" * 100)]), tmp_path / "given")


@pytest.mark.parametrize("where", ["file", "folder"])
def test_links_in_the_old_folder_lead_nowhere(tmp_path: Path, where: str) -> None:
    old, secret = tmp_path / "old", tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    old.mkdir()
    (old / "a").symlink_to(secret / "key" if where == "file" else secret)
    name = "a" if where == "file" else "a/key"
    change = Change("model", content(b"secret"), Way.COPY, 0, name, content(b"secret"))
    (tmp_path / "bad").write_bytes(hostile([change], [], folder=True))
    with pytest.raises(MismatchError):
        applying.apply(old, tmp_path / "bad", tmp_path / "given")
    assert not (tmp_path / "given").exists()


def test_links_where_the_new_version_grows_are_not_followed(small: Made, tmp_path: Path) -> None:
    old, new, patch = small
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".given.part").symlink_to(tmp_path / "precious")
    applying.apply(old, patch, tmp_path / "given")
    assert (tmp_path / "given").read_bytes() == new.read_bytes()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "given").is_symlink()


def test_a_journal_that_is_a_link_is_refused(small: Made, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".given.journal").symlink_to(tmp_path / "precious")
    with pytest.raises(DeltaError):
        applying.apply(small[0], small[2], tmp_path / "given")
    assert (tmp_path / "precious").read_bytes() == b"precious"


# Interruptions


class StopError(Exception):
    pass


def stopping(after: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= after:
            raise StopError

    return progress


@pytest.mark.parametrize("after", [1, 20_000, 60_000])
def test_it_goes_on_where_it_was_stopped(several: Made, tmp_path: Path, after: int) -> None:
    old, new, patch = several
    with pytest.raises(StopError):
        applying.apply(old, patch, tmp_path / "given", stopping(after))
    assert not (tmp_path / "given").exists()
    assert applying.apply(old, patch, tmp_path / "given").resumed_at == max(5000, after)
    assert (tmp_path / "given").read_bytes() == new.read_bytes()
    assert clean(tmp_path)


def test_what_rotted_meanwhile_is_made_anew(several: Made, tmp_path: Path) -> None:
    old, new, patch = several
    with pytest.raises(StopError):
        applying.apply(old, patch, tmp_path / "given", stopping(20_000))
    (tmp_path / ".given.part").write_bytes(bytes(60_500))
    assert applying.apply(old, patch, tmp_path / "given").resumed_at == 0
    assert (tmp_path / "given").read_bytes() == new.read_bytes()


def test_another_patch_begins_anew(several: Made, tmp_path: Path) -> None:
    old, _, patch = several
    with pytest.raises(StopError):
        applying.apply(old, patch, tmp_path / "given", stopping(20_000))
    (tmp_path / "other").write_bytes(b"other")
    making.make(old, tmp_path / "other", tmp_path / "patch2", making.Settings(tools=False))
    assert applying.apply(old, tmp_path / "patch2", tmp_path / "given").resumed_at == 0
    assert (tmp_path / "given").read_bytes() == b"other"


@pytest.mark.parametrize("cut", [1, 5, 12, 20, 60])
def test_a_record_that_was_cut_off_is_not_there(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with journal.Journal(path, b"i" * 32) as written:
        written.record(journal.Position(0, 1, 100, 100, b"state"))
        whole = path.stat().st_size
        written.record(journal.Position(0, 2, 200, 200, b"s" * 60))
    os.truncate(path, path.stat().st_size - cut)
    with journal.Journal(path, b"i" * 32) as found:
        assert found.position == journal.Position(0, 1, 100, 100, b"state")
        assert path.stat().st_size == whole


# Folders


def versions(folder: Path) -> tuple[Path, Path]:
    old, new = folder / "1.0", folder / "1.1"
    for place in (old, new):
        (place / "deep").mkdir(parents=True)
    dice = random.Random(4)
    data = dice.randbytes(5000)
    for place, name, body in [
        (old, "model.bin", data),
        (new, "model.bin", data[:2500] + b"x" + data[2500:]),
        (old, "deep/card.toml", b"version = 1\n" * 20),
        (new, "deep/card.toml", b"version = 2\n" * 20),
        (old, "kept", b"kept" * 100),
        (new, "renamed", b"kept" * 100),
        (new, "added", b"added"),
        (old, "a.xml", b"<net>" * 50),
        (new, "b.xml", b"<net>" * 50 + b"</net>"),
        (old, "removed", b"removed"),
        (new, "empty", b""),
    ]:
        (place / name).write_bytes(body)
    return old, new


def test_a_folder(tmp_path: Path) -> None:
    old, new = versions(tmp_path)
    making.make(old, new, tmp_path / "patch", making.Settings(tools=False))
    applying.apply(old, tmp_path / "patch", tmp_path / "given")
    given = tmp_path / "given"
    assert {path.relative_to(given): path.read_bytes() for path in given.rglob("*") if path.is_file()} == {
        path.relative_to(new): path.read_bytes() for path in new.rglob("*") if path.is_file()
    }
    assert clean(tmp_path)
    assert applying.apply(old, tmp_path / "patch", given).was_there
    with applying.File(tmp_path / "patch") as file:
        changes = {change.path: change for change in container.read(file, file.size).changes}
    assert changes["renamed"].way is Way.COPY
    assert changes["b.xml"].source == "a.xml"
    assert changes["added"].source is None


def test_a_folder_is_not_made_within_the_old_one(tmp_path: Path) -> None:
    old, new = versions(tmp_path)
    making.make(old, new, tmp_path / "patch", making.Settings(tools=False))
    with pytest.raises(DeltaError, match="within the old version"):
        applying.apply(old, tmp_path / "patch", old / "given")


def test_a_file_and_a_folder_are_not_mixed(tmp_path: Path) -> None:
    old, new = versions(tmp_path)
    with pytest.raises(DeltaError, match="a file and a folder"):
        making.make(old, new / "added", tmp_path / "patch")
    making.make(old, new, tmp_path / "patch", making.Settings(tools=False))
    with pytest.raises(MismatchError, match="is for a folder"):
        applying.apply(old / "kept", tmp_path / "patch", tmp_path / "given")


def test_links_are_not_packed(tmp_path: Path) -> None:
    old, new = versions(tmp_path)
    (new / "link").symlink_to("kept")
    with pytest.raises(DeltaError, match="neither a file nor a folder"):
        making.make(old, new, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()
    assert clean(tmp_path)


# The command


def test_the_command(small: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, _ = small
    patch, given = tmp_path / "by-command", tmp_path / "given"
    assert main(["make", str(old), str(new), str(patch), "--no-tools"]) == 0
    assert f"{patch.stat().st_size} bytes" in capsys.readouterr().out
    assert main(["show", str(patch)]) == 0
    shown = capsys.readouterr().out
    assert hashlib.sha256(new.read_bytes()).hexdigest() in shown
    assert "dictionary" in shown
    assert main(["apply", str(old), str(patch), str(given)]) == 0
    assert given.read_bytes() == new.read_bytes()
    assert main(["apply", str(new), str(patch), str(tmp_path / "other")]) == 3
    assert main(["show", str(old)]) == 4
    assert main(["apply", str(old), str(tmp_path / "nothing"), str(tmp_path / "other")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("ota.delta: ") for line in errors] == [True, False] * 3
    assert [line.startswith("  -> ") for line in errors] == [False, True] * 3


def test_the_command_shows_what_tensors_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = deltas.pair(tmp_path)
    patch = tmp_path / "patch"
    assert main(["make", str(old), str(new), str(patch), "--no-tools"]) == 0
    assert main(["show", str(patch)]) == 0
    shown = capsys.readouterr().out
    assert "tensors" in shown
    assert "copy" in shown
    assert "delta" in shown
