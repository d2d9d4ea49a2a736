"""What the maker does where its codec fails: no patch that cannot be applied ever gets its name."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ota.delta import applying, codec, making
from ota.delta.errors import DeltaError, PatchError
from ota.delta.segments import Pair, Segment
from ota.delta.tensors import Source
from tests import deltas

ALONE = making.Settings(tools=False)


class Flawed:
    """An encoder that means well: a bit of its last payload is wrong."""

    def __init__(self, old: Source, new: Source, pairs: Sequence[Pair]) -> None:
        self._good = self.encode(old, new, pairs)
        self.tables = self._good.tables

    encode = staticmethod(codec.encode)

    def segments(self) -> Iterator[Segment]:
        *segments, last = self._good.segments()
        yield from segments
        yield replace(last, payload=last.payload[:-9] + bytes([last.payload[-9] ^ 1]) + last.payload[-8:])

    def close(self) -> None:
        self._good.close()


def lines(old: Path, new: Path, patch: Path) -> list[str]:
    said: list[str] = []
    making.make(old, new, patch, ALONE, said.append)
    return said


def applied(old: Path, patch: Path, new: Path) -> bytes:
    applying.apply(old, patch, new)
    return new.read_bytes()


def test_a_patch_is_applied_before_it_gets_its_name(tmp_path: Path) -> None:
    old, new = deltas.pair(tmp_path)
    said = lines(old, new, tmp_path / "patch")
    assert said[-1] == "checking: applying the patch"
    assert any("by tensors" in line for line in said)
    assert {path.name for path in tmp_path.iterdir()} == {old.name, new.name, "patch"}


def test_a_patch_that_cannot_be_applied_is_made_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = deltas.pair(tmp_path)
    monkeypatch.setattr(codec, "encode", Flawed)
    said = lines(old, new, tmp_path / "patch")
    assert any("cannot be applied" in line for line in said)
    assert applied(old, tmp_path / "patch", tmp_path / "given") == new.read_bytes()


def test_a_codec_that_fails_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(old: Source, new: Source, pairs: Sequence[Pair]) -> None:
        raise np.linalg.LinAlgError("it did not converge")

    old, new = deltas.pair(tmp_path)
    monkeypatch.setattr(codec, "encode", fails)
    said = lines(old, new, tmp_path / "patch")
    assert any("it did not converge" in line for line in said)
    assert applied(old, tmp_path / "patch", tmp_path / "given") == new.read_bytes()


def test_a_folder_of_which_one_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, path in zip((before, after), deltas.pair(tmp_path), strict=True):
        folder.mkdir()
        path.rename(folder / "model.safetensors")
        (folder / "kept").write_bytes(b"kept")
        (folder / "words").write_bytes(b"of " + folder.name.encode())
    (after / "added").write_bytes(bytes(range(256)) * 9)
    monkeypatch.setattr(codec, "encode", Flawed)
    lines(before, after, tmp_path / "patch")
    applying.apply(before, tmp_path / "patch", tmp_path / "given")
    assert {path.name: path.read_bytes() for path in (tmp_path / "given").iterdir()} == {
        path.name: path.read_bytes() for path in after.iterdir()
    }


def test_where_no_patch_can_be_applied_there_is_none(tmp_path: Path) -> None:
    old, new = deltas.pair(tmp_path)
    making.make(old, new, tmp_path / "patch", ALONE)
    broken = bytearray((tmp_path / "patch").read_bytes())
    broken[-1] ^= 1
    (tmp_path / "broken").write_bytes(broken)
    said: list[str] = []
    good = making.first_that_applies(old, [tmp_path / "broken", tmp_path / "patch"], tmp_path / "first", said.append)
    assert good == tmp_path / "patch"
    with pytest.raises(PatchError):
        applying.apply(old, tmp_path / "broken", tmp_path / "second")
    with pytest.raises(DeltaError, match="no patch from"):
        making.first_that_applies(old, [tmp_path / "broken"], tmp_path / "second", said.append)
    assert not (tmp_path / "second").exists()
