"""Applying a patch, killed at each of its steps and at random moments: the old version or the new one, whole.

MILLWRIGHT_KILLS=200 pytest tests/faults/test_delta_kill.py
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ota.delta import applying, making
from tests import deltas

SCRIPT = Path(__file__).with_name("delta_apply.py")
KILLS = int(os.environ.get("MILLWRIGHT_KILLS", "20"))
SEED = int(os.environ.get("MILLWRIGHT_SEED", "1"))
MOST_STEPS = 400
LIMIT_S = 60


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `old`, `new` and the `patch` between them: tensors, plain bytes, a copy, a new file."""
    root = tmp_path_factory.mktemp("versions")
    for name in ("old", "new"):
        (root / name).mkdir()
    old, new = deltas.pair(root, width=512)
    old.rename(root / "old" / "model.safetensors")
    new.rename(root / "new" / "model.safetensors")
    noise = np.random.default_rng(SEED).bytes(300_000)
    (root / "old" / "table").write_bytes(noise)
    (root / "new" / "table").write_bytes(noise[150_000:] + b"changed" + noise[:150_000])
    for name in ("old", "new"):
        (root / name / "kept").write_bytes(noise[:70_000])
    (root / "new" / "added").write_bytes(b"added")
    making.make(root / "old", root / "new", root / "patch", making.Settings(tools=False))
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(repository: Path, versions: Path, new: Path, step: int = 0) -> "subprocess.Popen[str]":
    words = [sys.executable, str(SCRIPT), versions / "old", versions / "patch", new, str(step)]
    return subprocess.Popen(
        words,
        cwd=repository,
        env={"PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def settled(versions: Path, new: Path, old: dict[str, bytes]) -> None:
    """What the kill left is whole, and the same call ends what was begun."""
    assert content(versions / "old") == old
    if new.exists():
        assert content(new) == content(versions / "new")
    applying.apply(versions / "old", versions / "patch", new)
    assert content(new) == content(versions / "new")
    assert [path.name for path in new.parent.iterdir()] == [new.name]


def test_killed_at_each_step(repository: Path, versions: Path, tmp_path: Path) -> None:
    old = content(versions / "old")
    resumed = set()
    for step in range(1, MOST_STEPS):
        place = tmp_path / str(step)
        place.mkdir()
        with start(repository, versions, place / "new", step) as process:
            out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode in (0, -signal.SIGKILL), err
        if not process.returncode:
            break
        resumed.add((place / ".new.journal").exists() and (place / ".new.journal").stat().st_size)
        settled(versions, place / "new", old)
        shutil.rmtree(place)
    assert out == f"done {step - 1}\n"
    assert len(resumed) > 4  # it was killed with as many different journals


@pytest.mark.timeout(180 + 5 * KILLS)
def test_killed_at_random_moments(repository: Path, versions: Path, tmp_path: Path) -> None:
    """Again and again, until the update has ended by itself."""
    dice, old = random.Random(SEED), content(versions / "old")
    began = time.monotonic()
    assert ended(repository, versions, tmp_path / "new", LIMIT_S)
    whole = time.monotonic() - began
    kills = rounds = 0
    while kills < KILLS:
        place = tmp_path / str(rounds)
        place.mkdir()
        rounds += 1
        while not ended(repository, versions, place / "new", dice.uniform(0, 1.5 * whole)):
            kills += 1
            assert content(versions / "old") == old
        settled(versions, place / "new", old)
        shutil.rmtree(place)


def ended(repository: Path, versions: Path, new: Path, after: float) -> bool:
    """Whether it ended by itself within `after` seconds; then it is killed."""
    with start(repository, versions, new) as process:
        try:
            process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait(LIMIT_S) == 0
