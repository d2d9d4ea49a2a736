"""Compiled models on disk: found again, never trusted when damaged, within a budget."""

import os
from pathlib import Path

import numpy as np
import pytest

from appliance.inference import models
from appliance.inference.backends import openvino
from appliance.inference.blobs import Blobs
from appliance.inference.port import Plan

SHIPPED = models.load(models.shipped()).model


def test_what_was_put_is_found_by_the_same_key_only(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, 1 << 20, "model device driver 1")
    assert blobs.get("8 rows") is None
    blobs.put("8 rows", b"compiled")
    assert blobs.get("8 rows") == b"compiled"
    assert blobs.get("9 rows") is None
    assert Blobs(tmp_path, 1 << 20, "model device driver 2").get("8 rows") is None
    assert Blobs(tmp_path, 1 << 20, "model device driver 1").get("8 rows") == b"compiled"


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty", "another's"])
def test_a_damaged_blob_is_gone(tmp_path: Path, harm: str) -> None:
    blobs = Blobs(tmp_path, 1 << 20, "a")
    blobs.put("key", b"compiled" * 100)
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    if harm == "another's":
        Blobs(tmp_path / "b", 1 << 20, "b").put("key", b"what another model compiled to")
        (other,) = (tmp_path / "b").iterdir()
        raw = bytearray(other.read_bytes())
    path.write_bytes({"truncated": bytes(raw[:50]), "empty": b""}.get(harm, bytes(raw)))
    assert blobs.get("key") is None
    assert not path.exists()


def test_those_not_used_for_longest_make_room(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, 3500, "a")
    for age, name in enumerate(["old", "used", "new"]):
        blobs.put(name, bytes(1000))
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_atime - 100, path.stat().st_mtime - 100 - age))
    assert blobs.get("used") is not None  # which makes it the newest
    blobs.put("one more", bytes(1000))
    assert [blobs.get(name) is not None for name in ("old", "used", "new", "one more")] == [False, True, True, True]


def test_what_is_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs", 1000, "a")
    blobs.put("large", bytes(1000))
    assert blobs.get("large") is None
    assert not (tmp_path / "blobs").exists()


def test_a_disk_that_refuses_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    blobs = Blobs(tmp_path / "blobs", 1 << 20, "a")
    blobs.put("key", b"compiled")
    assert blobs.get("key") is None


def test_all_of_one_identity_are_forgotten_together(tmp_path: Path) -> None:
    ours, theirs = Blobs(tmp_path, 1 << 20, "a"), Blobs(tmp_path, 1 << 20, "b")
    for blobs in (ours, theirs):
        blobs.put("1", b"one")
        blobs.put("2", b"two")
    assert ours.forget() == 2
    assert ours.get("1") is None
    assert theirs.get("1") == b"one"


def test_a_model_that_was_compiled_is_not_compiled_again(tmp_path: Path) -> None:
    backend = openvino.create(openvino.Settings())
    plan = Plan(blobs=str(tmp_path), identity="this model on this CPU")
    rows = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    first = backend.compile(SHIPPED, "CPU", plan).infer(rows)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(kept) == 2  # for the first try, and for sixteen rows
    stamps = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(backend.compile(SHIPPED, "CPU", plan).infer(rows), first)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == stamps  # none was written anew


def test_a_compiled_model_that_is_damaged_or_nonsense_is_compiled_again(tmp_path: Path) -> None:
    backend = openvino.create(openvino.Settings())
    plan = Plan(blobs=str(tmp_path), identity="this model on this CPU")
    rows = np.ones((openvino.TINY_BATCH, 64), np.float32)  # as many as the first try
    first = backend.compile(SHIPPED, "CPU", plan).infer(rows)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    key = whole[32:].partition(b"\n")[2].partition(b"\0")[0].decode()
    for harmed in ("cut", "sealed nonsense", "nothing"):
        if harmed == "sealed nonsense":
            Blobs(tmp_path, 1 << 20, plan.identity).put(key, b"\x7fno model\0" * 100)
        else:
            path.write_bytes(whole[:1000] if harmed == "cut" else b"")
        np.testing.assert_array_equal(backend.compile(SHIPPED, "CPU", plan).infer(rows), first)
        assert len(path.read_bytes()) == len(whole)
