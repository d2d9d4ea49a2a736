"""What a patch says that applying it takes in memory, beside what the process takes that applies it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from ota.delta import making, memory
from ota.delta.errors import PatchError
from tests import deltas

# A process begins with the peak of the one that starts it, so that has to be small.
LAUNCHER = """
import os, sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
print(usage.ru_maxrss * 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(repository: Path, old: Path, patch: Path, new: Path, kernel: bool) -> int:
    """Bytes that applying took at most."""
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER]
    command += [sys.executable, "-m", "ota.delta", "apply", str(old), str(patch), str(new)]
    environment = {"PYTHONPATH": str(repository)} | ({} if kernel else {"MILLWRIGHT_DELTA_KERNEL": "off"})
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


def versions(folder: Path, way: str) -> tuple[Path, Path]:
    if way == "tensors":
        return deltas.pair(folder, width=512)
    dice, size = random.Random(1), {"dictionary": 20_000, "covers": 9 << 20, "copy": 1 << 20}[way]
    old, new = folder / "old", folder / "new"
    noise = dice.randbytes(size)
    old.write_bytes(noise)
    new.write_bytes(noise if way == "copy" else noise[: size // 2] + b"put in" + noise[size // 2 :])
    return old, new


@pytest.mark.parametrize("way", ["tensors", "covers", "dictionary", "copy"])
def test_a_patch_tells_what_applying_it_takes(way: str, repository: Path, tmp_path: Path) -> None:
    old, new = versions(tmp_path, way)
    patch = tmp_path / "patch"
    making.make(old, new, patch, making.Settings(tools=False))
    told = memory.needed(patch)
    for kernel in (True, False):
        taken = peak(repository, old, patch, tmp_path / f"given-{kernel}", kernel)
        assert taken <= told <= 2 * taken


def test_more_is_told_where_more_is_kept(tmp_path: Path) -> None:
    """Wide matrices have blocks of full size, narrow ones have not."""
    told = []
    for width in (8, 1024):
        folder = tmp_path / str(width)
        folder.mkdir()
        making.make(*deltas.pair(folder, width=width), folder / "patch", making.Settings(tools=False))
        told.append(memory.needed(folder / "patch"))
    assert told[0] < told[1]


def test_what_is_no_patch_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "patch").write_bytes(b"x")
    with pytest.raises(PatchError):
        memory.needed(tmp_path / "patch")
