"""A first boot that is cut off at every change it makes to the disk: the next one brings the box to the same end."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.abrupt import CUT

SECRETS = {"mqtt/plant": "one", "mqtt/site": "two"}  # those of the program


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be had: processes are killed here, not disks, and each box is synced a hundred times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mw-", dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


def test_a_cut_at_every_step(folder: Path, repository: Path) -> None:
    program = Path(__file__).with_name("first_boot_steps.py")
    environment = {**os.environ, "PYTHONPATH": str(repository), "XDG_RUNTIME_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, program, folder], capture_output=True, text=True, env=environment, check=False
    )
    *lines, last = done.stdout.splitlines()
    assert (done.returncode, last) == (0, "done"), done.stderr
    boxes = [json.loads(line) for line in lines]
    assert len(boxes) > 30
    assert [box["codes"][0] for box in boxes] == [CUT] * (len(boxes) - 1) + [0]
    for box in boxes:
        assert set(box["codes"][1:]) == {0}, box
        assert box["secrets"] == SECRETS
        assert {"tls/authority", "tls/broker"} <= set(box["names"])
        assert (box["host"], box["port"], box["seed"]) == ("press-2\n", 8883, False)
        assert box["key_opens"]
