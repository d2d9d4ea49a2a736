"""The compiled kernel and numpy give the same bits; a kernel that does not is never used."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota.delta import compiling, kernel, rans, tokens
from ota.delta.codec import Decoder, Hints, Pair, encode
from ota.delta.errors import DeltaError, PatchError
from ota.delta.integers import FORMS, store
from ota.delta.kernel import Kernel
from ota.delta.tensors import Kind, Memory, Tensor
from ota.delta.terms import Terms, place


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    if shutil.which("cc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no C compiler")
        pytest.skip("there is no C compiler")
    found = kernel.load(compiling.build(tmp_path_factory.mktemp("kernel")))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_predictions_land_in_the_same_places(compiled: Kernel, kind: Kind, data: st.DataObject) -> None:
    """Any terms, any of them absent: numbers, neighbours, tables, and the bytes in the end."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    rows, groups, wide = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3)), 2 * data.draw(st.integers(1, 700))
    columns, shared = groups * wide, data.draw(st.booleans())
    grid = (1, 1, 1) if shared else (rows, groups, 1)
    spread = 2.0 ** data.draw(st.integers(-140, 120))
    terms = Terms(
        kind=kind,
        rows=rows,
        columns=columns,
        old=rng.bytes(rows * columns * FORMS[kind].width // 8),
        row_classes=rng.integers(-300, 300, rows, np.int32),
        column_classes=rng.integers(-5, 5, columns, np.int32),
        factor=rng.normal(1, 0.3, grid) * rng.choice([1.0, 1.0, spread, np.inf, np.nan, 0.0], grid),
        change=np.rint(rng.normal(0, 1e6, (rows, columns))),
        lift=np.exp2(rng.normal(-20, 8, grid)),
        old_zero=rng.integers(-9, 9, grid).astype(float),
        new_zero=rng.integers(-9, 9, grid).astype(float),
    )
    absent = data.draw(st.sets(st.sampled_from(["old", "column_classes", "change", "old_zero", "new_zero"])))
    terms = replace(terms, **dict.fromkeys(absent))
    tables = rng.integers(0, 256, tokens.CLASSES * 256, np.uint8)
    with np.errstate(all="ignore"):
        places = place(terms)
    numbers, toward, chosen = compiled.place(terms, tables)
    assert (numbers == places.cells.ordered).all()
    assert (toward == places.cells.toward).all()
    assert (chosen == tables[places.classes.astype(int) << 8 | places.cells.fraction]).all()
    assert compiled.store(kind, numbers) == store(kind, numbers)


@given(seed=st.integers(0, 1 << 32), lanes=st.sampled_from([8, 256]), size=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_streams_are_read_alike(compiled: Kernel, seed: int, lanes: int, size: int) -> None:
    """Whatever the words are; where they run out, both say so."""
    rng = np.random.default_rng(seed)
    rows = [np.bincount(rng.integers(0, rng.integers(1, 257), rans.TOTAL), minlength=256) for _ in range(3)]
    tables = rans.Tables(np.array(rows, np.uint32))
    words = rng.integers(0, 1 << 16, rng.integers(0, size + 1), np.uint16)
    chosen = rng.integers(0, 3, size, np.uint8)
    ours, theirs = (np.full(lanes, 1 << 20, np.uint32) for _ in range(2))
    try:
        wanted = rans.decode(tables, ours, words, 0, chosen)
    except PatchError:
        with pytest.raises(PatchError):
            compiled.decode(tables, theirs, words, 0, chosen)
        return
    symbols, position = compiled.decode(tables, theirs, words, 0, chosen)
    assert (symbols == wanted[0]).all()
    assert position == wanted[1]
    assert (ours == theirs).all()


@given(numbers=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=100), cut=st.integers(0, 8))
def test_tokens_are_joined_alike(compiled: Kernel, numbers: list[int], cut: int) -> None:
    symbols, raw = tokens.split(np.array(numbers, np.int32))
    data = tokens.pack(raw, tokens.WIDTHS.take(symbols))
    data = data[: max(0, len(data) - cut)]
    toward = np.where(np.arange(len(numbers)) % 3, 1, -1).astype(np.int8)
    base = np.arange(len(numbers), dtype=np.int32) * 77
    found, ours, theirs = base.copy(), tokens.Bits(data), tokens.Bits(data)
    try:
        wanted = base + tokens.join(symbols, ours) * toward
    except PatchError:
        with pytest.raises(PatchError):
            compiled.join(symbols, theirs, found, toward)
        return
    compiled.join(symbols, theirs, found, toward)
    assert (found == wanted).all()
    assert ours.position == theirs.position


def test_a_whole_patch_is_applied_alike(compiled: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota.delta.decoding.available", lambda: compiled)
    rng = np.random.default_rng(1)
    old = rng.normal(0, 1, (64, 512)).astype("<f2")
    new = (old + rng.normal(0, 0.01, (64, 3)) @ rng.normal(0, 1, (3, 512))).astype("<f2")
    weights = Tensor("weights", Kind.F16, (64, 512), 0, old.nbytes)
    encoded = encode(Memory(old.tobytes()), Memory(new.tobytes()), [Pair(weights, weights, Hints())])
    for reference in (False, True):
        decoder = Decoder(Memory(old.tobytes()), Memory(b""), encoded.tables, reference)
        assert b"".join(map(decoder.decode, encoded.segments())) == new.tobytes()
        decoder.finish()
    encoded.close()


def test_a_kernel_of_other_bits_is_refused(compiled: Kernel, tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(kernel.SOURCE.read_text().replace("FRACTIONS = 128", "FRACTIONS = 64"))
    subprocess.run(["cc", *compiling.FLAGS, "-o", library, source], check=True)
    assert kernel.load(library) is None


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.so").write_bytes(b"no library")
    assert kernel.load(tmp_path / "empty.so") is None


@pytest.mark.parametrize("there", [True, False])
def test_the_kernel_of_the_folder_that_is_named_is_used(
    compiled: Kernel, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setenv(kernel.WHERE, str(compiled.path.parent) if there else "off")
    kernel.available.cache_clear()
    found = kernel.available()
    assert (found is not None and found.path == compiled.path) if there else found is None
    kernel.available.cache_clear()


def test_the_command_compiles_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(kernel.WHERE, str(tmp_path))
    kernel.available.cache_clear()
    assert compiling.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(str(tmp_path)) == 2
    assert compiling.main(["--help"]) == 2
    kernel.available.cache_clear()


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(DeltaError, match="no C compiler"):
        compiling.build(tmp_path)
