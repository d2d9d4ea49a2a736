"""Differences of system images, and dm-verity's tree: right ones, damaged ones, hostile ones, cut off ones."""

import hashlib
import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ota.errors import DamagedError, OtaError, StorageError
from ota.osdelta import applying, form, making, verity
from ota.osdelta.applying import WrongBaseError
from ota.osdelta.form import BLOCK, COPY, FRAME_BLOCKS, NEW, ZERO, DifferenceError

KILLED = RuntimeError("the power is cut")


def blocks(count: int, seed: int) -> list[bytes]:
    """Blocks as compressed files have them: no two alike."""
    chance = random.Random(seed)
    return [chance.randbytes(BLOCK) for _ in range(count)]


def releases() -> tuple[bytes, bytes]:
    """Two images whose files are the same but one, which moves all that comes after it; empty at the end."""
    head, package, tail, tables = blocks(2, 1), blocks(60, 2), blocks(3 * FRAME_BLOCKS, 3), blocks(40, 4)
    changed = [bytes(one[:1000] + b"changed here" + one[1000:])[:BLOCK] for one in package] + blocks(1, 5)
    inodes = [one[:100] + b"\1" + one[101:] for one in tables]
    empty = [bytes(BLOCK)] * FRAME_BLOCKS
    return b"".join([*head, *package, *tail, *tables, *empty]), b"".join([*head, *changed, *tail, *inodes, *empty])


class Site:
    def __init__(self, folder: Path, old: bytes, new: bytes) -> None:
        self.old, self.new, self.delta, self.out = (folder / name for name in ("old", "new", "delta", "out"))
        self.old.write_bytes(old)
        self.new.write_bytes(new)
        making.make(self.old, self.new, self.delta)

    def apply(self, progress: Callable[[int, int], None] = lambda done, length: None) -> None:
        applying.apply(self.old, self.delta, self.out, progress)

    @property
    def is_right(self) -> bool:
        return self.out.read_bytes() == self.new.read_bytes() and not applying.mark_of(self.out).exists()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, *releases())


def test_a_package_that_changes_costs_little(site: Site) -> None:
    site.apply()
    assert site.is_right
    assert site.delta.stat().st_size < site.new.stat().st_size / 100
    assert site.out.stat().st_blocks * 512 < site.new.stat().st_size  # what is empty takes no room


def test_the_same_images_give_the_same_difference(site: Site) -> None:
    before = site.delta.read_bytes()
    making.make(site.old, site.new, site.delta)
    assert site.delta.read_bytes() == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    new=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    rests=st.tuples(st.binary(max_size=50), st.binary(max_size=50)),
)
def test_any_two_images(tmp_path: Path, old: list[int], new: list[int], rests: tuple[bytes, bytes]) -> None:
    contents = [bytes(BLOCK), *blocks(12, 7)]
    one, other = (b"".join(contents[n] for n in which) + rest for which, rest in zip((old, new), rests, strict=True))
    site = Site(tmp_path, one, other)
    site.apply()
    assert site.is_right


def test_the_old_image_may_lie_on_a_longer_partition(site: Site) -> None:
    with site.old.open("ab") as file:
        file.write(random.Random(1).randbytes(5 * BLOCK))
    site.apply()
    assert site.is_right


def test_another_old_image_is_seen_before_anything_is_written(site: Site) -> None:
    with site.old.open("r+b") as file:
        file.seek(BLOCK * 3)
        file.write(b"rot")
    with pytest.raises(WrongBaseError):
        site.apply()
    assert not site.out.exists()


def test_an_old_image_that_is_too_short(site: Site) -> None:
    site.old.write_bytes(site.old.read_bytes()[:-1])
    with pytest.raises(WrongBaseError):
        site.apply()


@pytest.mark.parametrize("after", range(1, 5))
def test_it_goes_on_where_it_was_cut_off(site: Site, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "MARK_FRAMES", 1)
    frames = []

    def cut(done: int, _: int) -> None:
        frames.append(done)
        if len(frames) == after:
            raise KILLED

    with pytest.raises(RuntimeError):
        site.apply(cut)
    with site.out.open("ab") as file:
        file.write(b"\0" * BLOCK * 3)  # as a file system may leave it after a power cut
    frames.clear()
    site.apply(lambda done, _: frames.append(done))
    assert site.is_right
    assert frames[0] > FRAME_BLOCKS * BLOCK * (after - 1)


def test_a_mark_of_another_image_is_not_believed(site: Site) -> None:
    mark = applying.Mark("0" * 64, 100, BLOCK, 0)
    site.out.write_bytes(b"x" * BLOCK)
    for content in (json.dumps(mark.__struct_fields__).encode(), b"", b"\0\xff", json.dumps({"new": 1}).encode()):
        applying.mark_of(site.out).write_bytes(content)
        site.apply()
        assert site.is_right


def test_what_rotted_before_the_mark_is_thrown_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "MARK_FRAMES", 1)

    def cut(done: int, _: int) -> None:
        if done > FRAME_BLOCKS * BLOCK * 2:
            raise KILLED

    with pytest.raises(RuntimeError):
        site.apply(cut)
    with site.out.open("r+b") as file:
        file.write(b"rot")
    with pytest.raises(DamagedError):
        site.apply()
    assert not site.out.exists()
    site.apply()
    assert site.is_right


def test_damage_never_ends_as_an_image(site: Site) -> None:
    whole, chance = site.delta.read_bytes(), random.Random(3)
    for _ in range(30):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        site.delta.write_bytes(damaged if chance.random() < 0.7 else damaged[: chance.randrange(len(damaged))])
        try:
            site.apply()
        except OtaError:
            assert not site.out.exists() or site.out.stat().st_size <= site.new.stat().st_size
        else:
            assert site.is_right
    site.delta.write_bytes(whole)
    site.apply()
    assert site.is_right


def test_more_after_the_end_is_not_taken(site: Site) -> None:
    with site.delta.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DifferenceError, match="more comes"):
        site.apply()


@pytest.mark.parametrize(
    "frame",
    [
        form.Frame(((COPY, 1, 1 << 30),), (), 0, b""),
        form.Frame(((COPY, 5, 2),), (), 0, b""),
        form.Frame(((NEW, 1, 0),), ((0, 5),), BLOCK, b"packed"),
        form.Frame(((ZERO, FRAME_BLOCKS, 0), (ZERO, FRAME_BLOCKS, 0)), (), 0, b""),
        form.Frame((), (), 0, b""),
        form.Frame(((3, 1, 0),), (), 0, b""),
        form.Frame(((NEW, 1, 0),), (), 2 * BLOCK, b"packed"),
    ],
)
def test_frames_that_ask_for_too_much(frame: form.Frame) -> None:
    data = form.encode_frame(frame, 0)
    sizes = form.frame_sizes(data[: form.FRAME_HEAD])
    with pytest.raises(DifferenceError):
        form.decode_frame(data[form.FRAME_HEAD :], sizes, 0, old_blocks=4)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_none(data: bytes) -> None:
    try:
        sizes = form.frame_sizes(struct.pack("<4I", min(len(data), 40), max(len(data) - 40, 0), 0, 0))
        frame = form.decode_frame(data, sizes, 0, 100)
    except DifferenceError:
        return
    assert 0 < frame.blocks <= FRAME_BLOCKS


@given(copied_to=st.integers(0, 1000), first=st.integers(0, 1000), count=st.integers(1, 24))
def test_a_frame_gives_back_what_it_was_made_of(copied_to: int, first: int, count: int) -> None:
    frame = form.Frame(((COPY, count, first), (ZERO, 1, 0), (NEW, 2, 0)), ((first, 1),), 2 * BLOCK, b"packed")
    data = form.encode_frame(frame, copied_to)
    sizes = form.frame_sizes(data[: form.FRAME_HEAD])
    assert form.decode_frame(data[form.FRAME_HEAD :], sizes, copied_to, 1100) == frame


@pytest.mark.parametrize("data", [b"", form.MAGIC, form.MAGIC + b"\xff" * 8, form.MAGIC + b"\x02\0\0\0{}"])
def test_heads_that_are_none(data: bytes) -> None:
    with pytest.raises(DifferenceError):
        form.decode_head(data)


def test_a_folder_that_cannot_be_written(site: Site) -> None:
    site.out = site.out.parent / "missing" / "out"
    with pytest.raises(StorageError):
        site.apply()


def test_the_command(site: Site, repository: Path) -> None:
    def run(*words: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "ota.osdelta", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository)
        return done.returncode, done.stdout

    code, said = run("make", site.old, site.new, site.delta)
    assert (code, json.loads(said)["bytes"]) == (0, site.delta.stat().st_size)
    assert run("apply", site.old, site.delta, site.out)[0] == 0
    assert site.is_right
    assert json.loads(run("show", site.delta)[1])["new"]["length"] == site.new.stat().st_size
    assert run("apply", site.new, site.delta, site.out)[0] == 3
    assert run("show", site.old)[0] == 4
    assert run("show", site.old.parent / "none")[0] == 1
    assert run("show")[0] == 2


# ---- dm-verity ------------------------------------------------------------------------------------------------------

SALTS = {  # root hash and the SHA-256 of the whole partition, as veritysetup 2.7.5 made them
    "ab" * 32: (
        "a68322bbd4f32918fce73e0ade2f81c7776165acdcbad3f8428187a04ab8cfb5",
        "a4a732cb26a4d3a44a21901a1104b5b86814023d57df12cb5414a9dfb9719772",
    ),
    "": (
        "085b44768694922c27eaaee17d7d2b3d53d059297172f6a76fde73d037230c86",
        "a28d65f04e7e4b16478af8e46af13c445b77d3862d2285438ebea7c5748dee26",
    ),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    contents = [bytes(BLOCK) if n % 7 == 0 else hashlib.sha256(str(n).encode()).digest() * 128 for n in range(300)]
    (path := tmp_path / "image").write_bytes(b"".join(contents))
    return path


@pytest.mark.parametrize("salt", SALTS)
def test_the_tree_is_that_of_veritysetup(image: Path, tmp_path: Path, salt: str) -> None:
    tree = form.Tree(300, salt, "01234567-89ab-4cde-8f01-23456789abcd")
    root = verity.build(image, tree, tmp_path / "tree", 1 << 20)
    made = (tmp_path / "tree").read_bytes()
    assert (root, hashlib.sha256(made).hexdigest()) == SALTS[salt]
    assert verity.read(made[:BLOCK]) == tree


def test_a_tree_that_does_not_fit(image: Path, tmp_path: Path) -> None:
    tree = form.Tree(300, "", "01234567-89ab-4cde-8f01-23456789abcd")
    with pytest.raises(DifferenceError, match="does not fit"):
        verity.build(image, tree, tmp_path / "tree", 3 * BLOCK)
    with pytest.raises(DifferenceError, match="too early"):
        verity.build(image, form.Tree(301, "", tree.uuid), tmp_path / "tree", 1 << 20)


@given(data=st.binary(max_size=600))
def test_any_bytes_are_no_superblock(data: bytes) -> None:
    with pytest.raises(DifferenceError):
        verity.read(data)
