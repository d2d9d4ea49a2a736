"""Builds the default model, or checks that the shipped one is what the build gives: `tools/model build | check`.

    tools/model float DIR    the bundle before it was quantised, to compare with

The weights are trained in floating point and then quantised to eight bits, activations too, by NNCF (`tools/setup
trainer`); the residual stays outside, in the detector.

The weights are a function of this folder's source alone: fixed seeds, float64, one thread, fixed kernels (tools/model
sets them before numpy is loaded) and no data but what `signals` makes.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from appliance.inference import models
from appliance.inference.backends import openvino
from appliance.inference.quantisation import quantise
from appliance.inference.samples import Samples
from tools.training import ir, signals
from tools.training.network import Layer, reconstruct, train

NAME, VERSION = "window-autoencoder", "2.0.0"
WIDTH = 64  # samples
SIZES = (WIDTH, 128, 64, 10, 64, 128, WIDTH)
STEPS, BATCH = 24_000, 256
TRAIN_SEED, HELD_OUT_SEED, WEIGHT_SEED = 20_261, 20_262, 20_263
TRAIN_SIGNALS, HELD_OUT_SIGNALS, WINDOWS_PER_SIGNAL = 3000, 250, 10  # of each family

# Windows of the held-out ones, and how many at once: NNCF takes the mean of what the batches reach at most, and a batch
# of one window would teach it to cut off the large ones.
CALIBRATION, TOGETHER = 3840, 480

SHIPPED = Path(__file__).parents[2] / "appliance" / "inference" / "shipped"
DESCRIPTION = (
    "Reconstructs windows of ordinary sensor signals, one channel a row; channels are the batch, so that one model "
    "serves any number of them. What it cannot reconstruct is unusual."
)
DATA = (
    "Generated: coloured and resonant noise, sines, cycles, walks, control loops, coarse readings, mixtures of these."
)

Windows = NDArray[np.float32]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/model", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("build", "check", "float"))
    parser.add_argument("folder", nargs="?", type=Path, help="of `float`: where its bundle goes")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer, to try something out")
    options = parser.parse_args()
    if (options.action == "float") != (options.folder is not None):
        parser.error("`float DIR` needs a folder, the others take none")
    if options.action == "float":
        options.folder.mkdir(parents=True, exist_ok=True)
        print(build(options.folder, options.steps, quantised=False))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = build(Path(folder), options.steps)
        return install(made) if options.action == "build" else compare(made)


def build(folder: Path, steps: int = STEPS, quantised: bool = True) -> Path:
    """Makes the bundle in `folder` and returns its own folder there."""
    began = time.monotonic()
    learn = _stack(signals.windows(TRAIN_SEED, TRAIN_SIGNALS, WINDOWS_PER_SIGNAL, WIDTH))
    held_out = signals.windows(HELD_OUT_SEED, HELD_OUT_SIGNALS, WINDOWS_PER_SIGNAL, WIDTH)
    _say(began, f"{len(learn):,} windows to learn from")
    layers = _trained(learn, steps, began)
    figures = evaluate(layers, learn, held_out)
    _say(began, ", ".join(f"{name} {value}" for name, value in figures.items()))
    return write(folder, layers, learn, figures, _stack(held_out) if quantised else None)


def _trained(learn: Windows, steps: int, began: float) -> list[Layer]:
    training = train(np.random.default_rng(WEIGHT_SEED), SIZES, learn, steps, BATCH)
    layers = next(training)
    for step, newer in enumerate(training, 2):
        layers = newer
        if step % 4000 == 0:
            _say(began, f"step {step:,} of {steps:,}")
    return layers


def evaluate(layers: Sequence[Layer], learn: Windows, held_out: Mapping[str, Windows]) -> dict[str, float]:
    """The share of the held-out windows' energy that comes back, beside a linear map through as narrow a neck."""
    everything = _stack(held_out)
    figures = {
        "explained": _explained(lambda rows: reconstruct(layers, rows), everything),
        f"explained_linear_{min(SIZES)}": _explained(_linear(learn, min(SIZES)), everything),
    }
    for family, rows in held_out.items():
        figures[f"explained_{family}"] = _explained(lambda rows: reconstruct(layers, rows), rows)
    return figures


def _explained(model: Callable[[NDArray[np.float64]], NDArray[np.float64]], windows: Windows) -> float:
    rows = windows.astype(np.float64)
    return round(1.0 - float(np.sum((model(rows) - rows) ** 2) / np.sum(rows**2)), 4)


def _linear(learn: Windows, rank: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The best linear autoencoder: the first principal directions."""
    rows = learn.astype(np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean
    directions = np.linalg.eigh(centred.T @ centred)[1][:, -rank:]
    return lambda given: (given - mean) @ directions @ directions.T + mean


def write(
    folder: Path, layers: Sequence[Layer], learn: Windows, figures: Mapping[str, float], calibration: Windows | None
) -> Path:
    """The bundle's files, then the folder's name, which is their hash. Without `calibration` it stays as it is."""
    draft, wide = folder / "draft", folder / "float"
    draft.mkdir()
    if calibration is None:
        ir.write(layers, NAME, draft / "model.xml")
    else:
        wide.mkdir()
        ir.write(layers, NAME, wide / "model.xml")
        rows = calibration[:: max(len(calibration) // CALIBRATION, 1)][:CALIBRATION]
        parts = max(len(rows) // TOGETHER, 1)
        mixed = np.concatenate([rows[start::parts] for start in range(parts)])  # of all families in each batch
        samples = Samples({"windows": mixed})
        quantise(wide / "model.xml", samples, wide / "int8.xml", rows=len(mixed) // parts)
        ir.rename(wide / "int8.xml", draft / "model.xml")
        # Measured as on CPUs without VNNI, which lose a little more (tools/model sets the vectors): no CPU does worse.
        figures = {**figures, "explained_int8": round(_explained(_compiled(draft / "model.xml"), calibration), 2)}
    (draft / models.CARD).write_text(card(draft, learn, figures), "utf-8")
    made = draft.rename(folder / models.hash_of(draft))
    models.load(made)
    return made


def _compiled(path: Path) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    model = openvino.create(openvino.Settings()).compile(path, "CPU")
    return lambda rows: model.infer(rows.astype(np.float32)).astype(np.float64)


def card(draft: Path, learn: Windows, figures: Mapping[str, float]) -> str:
    files = {path.name: path.read_bytes() for path in sorted(draft.iterdir())}
    tables: dict[str, dict[str, Any]] = {
        "training": {
            "data": DATA,
            "data_sha256": _sha256(learn.tobytes()),
            "rows": len(learn),
            "seed": WEIGHT_SEED,
            "by": "tools/model build",
        },
        "evaluation": dict(figures),
        **{f'files."{name}"': {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()},
    }
    port = {"shape": [-1, WIDTH], "dtype": "float32", "scale": "zscore"}
    top = {"name": NAME, "version": VERSION, "task": "reconstruction", "window": WIDTH, "description": DESCRIPTION}
    lines = _lines(top)
    for kind, name in (("inputs", "windows"), ("outputs", "reconstruction")):
        lines += ["", f"[[{kind}]]", *_lines({"name": name, **port})]
    for title, table in tables.items():
        lines += ["", f"[{title}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers and lists of numbers are TOML's.
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def install(made: Path) -> int:
    """The new bundle in place of the shipped one."""
    SHIPPED.mkdir(exist_ok=True)
    for old in SHIPPED.iterdir():
        if old.name != made.name:
            shutil.rmtree(old)
            print(f"removed {old.name}")
    target = SHIPPED / made.name
    print(f"{'unchanged' if target.exists() else 'new'}: {target.name}")
    shutil.copytree(made, target, dirs_exist_ok=True)
    return 0


def compare(made: Path) -> int:
    """0 where the shipped bundle is the built one to the last bit."""
    ours = models.shipped()
    different = [
        name
        for name in sorted({path.name for folder in (made, ours) for path in folder.iterdir()})
        if not _same(made / name, ours / name)
    ]
    if not different:
        print(f"the shipped bundle is what the build gives: {ours.name}")
        return 0
    print(f"tools/model: {', '.join(different)} of {ours.name} differ from what the build gives", file=sys.stderr)
    print(f"  (built with numpy {np.__version__}, openvino {ov.__version__})", file=sys.stderr)
    return 1


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _stack(families: Mapping[str, Windows]) -> Windows:
    return np.concatenate(list(families.values()))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _say(began: float, what: str) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
