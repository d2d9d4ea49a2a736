"""What `tools/arm64` compares: patches made here and applied there, and the bits of every step between.

bits.py make FOLDER    on the machine itself: patches, what they give, and digests of predictions of every kind
bits.py check FOLDER   on the emulated one: the same again; exit code 1 where a single bit differs
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

from ota.delta import applying, kernel, lowrank
from ota.delta.files import File
from ota.delta.integers import FORMS, store
from ota.delta.tensors import Kind
from ota.delta.terms import Terms, place

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MILLWRIGHT_SHARED") or ROOT.parent / "shared") / "data" / "models"
PAIRS = (
    ("g_base.int4.bin", "g_lora.int4.bin"),
    ("t_base.int8.tflite", "t_full.int8.tflite"),
)
SEEDS, ROWS, GROUPS, WIDE = 40, 12, 3, 64


def make(folder: Path) -> int:
    from ota.delta import making
    from tests import deltas

    old, new = deltas.pair(folder, width=256)
    named = [(old, new)]
    named += [(SHARED / before, SHARED / after) for before, after in PAIRS if (SHARED / before).exists()]
    told = []
    for number, (before, after) in enumerate(named):
        print(f"a patch from {before.name} to {after.name}", flush=True)
        making.make(before, after, folder / f"{number}.patch", making.Settings(tools=False))
        told.append((str(before), f"{number}.patch", _digest(after)))
    (folder / "told.json").write_text(json.dumps({"patches": told, "bits": bits()}))
    return 0


def check(folder: Path) -> int:
    found = kernel.available()
    print(f"{platform.machine()}, numpy {np.__version__}, {'kernel' if found else 'no kernel'}", flush=True)
    told, same = json.loads((folder / "told.json").read_text()), True
    for name, digest in bits().items():
        same &= _say(name, digest == told["bits"][name])
        if found:
            kind = Kind(name)
            same &= _say(f"{name} by the kernel", all(kernel.agrees(found, kind, seed) for seed in range(SEEDS)))
    for old, patch, digest in told["patches"]:
        given = folder / f"{patch}.given"
        given.unlink(missing_ok=True)
        applying.apply(Path(old), folder / patch, given)
        same &= _say(f"{Path(old).name} patched", _digest(given) == digest)
    return 0 if same else 1


def bits() -> dict[str, str]:
    """Of every kind a digest of where predictions land: any floats, infinite and subnormal ones among them."""
    return {kind.value: _bits_of(kind) for kind in FORMS}


def _bits_of(kind: Kind) -> str:
    found = hashlib.sha256()
    for seed in range(SEEDS):
        places = place(_terms(kind, np.random.default_rng(seed)))
        cells = places.cells
        for array in (cells.ordered, cells.octave, cells.toward, cells.fraction, places.classes):
            found.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        found.update(store(kind, cells.ordered))
    return found.hexdigest()


def _terms(kind: Kind, rng: np.random.Generator) -> Terms:
    """From integers alone: other draws go through the machine's own logarithms."""
    grid, columns = (ROWS, GROUPS, 1), GROUPS * WIDE
    left, right = (rng.integers(-(1 << 14), 1 << 14, shape, np.int32) for shape in ((ROWS, 8), (8, columns)))
    shifts = rng.integers(0, lowrank.MAX_SHIFT, 8, np.int32)
    return Terms(
        kind=kind,
        rows=ROWS,
        columns=columns,
        old=rng.bytes(ROWS * columns * FORMS[kind].width // 8),
        row_classes=rng.integers(-20, 20, ROWS, np.int32),
        column_classes=rng.integers(-3, 4, columns, np.int32),
        factor=1 + np.ldexp(rng.integers(-(1 << 20), 1 << 20, grid).astype(np.float64), -22),
        change=lowrank.product(left, lowrank.shifted(right, shifts)),
        lift=np.ldexp(1 + rng.integers(0, 1 << 20, grid) / 2.0**20, rng.integers(-60, -20, grid)),
        old_zero=rng.integers(-3, 4, grid).astype(np.float64),
        new_zero=rng.integers(-3, 4, grid).astype(np.float64),
    )


def _digest(path: Path) -> str:
    with File(path) as file:
        return file.digest().hex()


def _say(name: str, same: bool) -> bool:
    print(f"{name:<28} {'the same bits' if same else 'OTHER BITS'}", flush=True)
    return same


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        sys.exit({"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2])))
