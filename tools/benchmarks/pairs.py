"""Pairs of files that `delta` measures: an old version of a model, a new one, and how small the patch is to be."""

import json
import math
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MILLWRIGHT_SHARED") or ROOT.parent / "shared") / "data" / "models"
NEVER_ABOVE = 1.02  # times the best tool
LARGE_BYTES, LARGE_TENSORS, LARGE_CHANGED = 2 << 30, 64, 3  # of the file that shows bounded memory

MOVED = "moved.json"  # how far the weights of each version trained here moved

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """`bound` is the most our patch may take of the best tool's; `rated` ones count for the rate of applying.

    `told` says what the pair is, `moved` how far the weights moved, in shares of their size.
    """

    name: str
    old: Path
    new: Path
    bound: float = NEVER_ABOVE
    factors: Path | None = None
    rated: bool = True
    told: str = ""
    moved: float | None = None


_Recipe = tuple[str, str, str, float]  # network, tuning, precision, bound

RECIPES: tuple[_Recipe, ...] = (
    ("cnn", "adam", "fp32", 0.65),
    ("cnn", "adam", "fp16", 0.42),
    ("cnn", "sgd", "fp16", 0.42),
    ("cnn", "adam", "bf16", 0.40),
    ("cnn", "head", "fp16", 0.08),
    ("cnn", "head frozen", "fp16", NEVER_ABOVE),
    ("cnn", "adam", "int8", 0.62),
    ("cnn", "sgd", "int8", 0.78),
    ("cnn", "added", "fp16", 0.50),
    ("cnn", "added", "int8", 0.78),
    ("gpt", "adam", "fp32", 0.65),
    ("gpt", "adam", "fp16", 0.42),
    ("gpt", "sgd", "fp16", 0.42),
    ("gpt", "adam", "bf16", 0.40),
    ("gpt", "head", "fp16", NEVER_ABOVE),
    ("gpt", "adam", "int8", 0.62),
    ("gpt", "sgd", "int8", 0.78),
    ("gpt", "adam", "int4", 0.57),
    ("gpt", "added", "fp16", 0.50),
    ("gpt", "added", "int8", 0.78),
    ("gpt", "lora", "fp16", 0.06),
    ("gpt", "lora", "int8", 0.12),
    ("gpt", "lora", "int4", 0.50),
    ("wide", "adam", "bf16", 0.40),
    ("wide", "adam", "int8", 0.62),
)
TUNINGS = {
    "adam": "all weights, Adam at up to 1e-4",
    "sgd": "all weights, momentum at up to 1e-3 (cnn), 3e-2 (gpt)",
    "head": "the last layer; batch statistics go on",
    "head frozen": "the last layer and no statistics",
    "added": "all weights, and a layer put in that is new",
    "lora": "factors of rank 8, Adam at up to 1e-3, merged; handed over to us",
}
SHARED_PAIRS = (
    ("shared r int8", "r_base.int8.bin", "r_full_adam.int8.bin", 0.62, "ResNet-18, all weights, Adam"),
    (
        "shared g int4 lora",
        "g_base.int4.bin",
        "g_lora.int4.bin",
        0.50,
        "GPT of 27 million, merged factors, not handed over",
    ),
    ("shared t int8 tflite", "t_base.int8.tflite", "t_full.int8.tflite", NEVER_ABOVE, "small CNN, all weights"),
    ("shared r xml", "r_base.int8.xml", "r_full_adam.int8.xml", NEVER_ABOVE, "a graph in words"),
    ("shared g xml", "g_base.int4.xml", "g_lora.int4.xml", NEVER_ABOVE, "a graph in words"),
)


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(word in name for word in only)


def pairs(folder: Path, only: Sequence[str], say: Say, quick: bool = False) -> Iterator[Pair]:
    """Those whose name has one of the words `only`; trained where `folder` does not have them yet."""
    recipes = [recipe for recipe in RECIPES if _wanted(" ".join(recipe[:3]), only)]
    recipes = [recipe for recipe in recipes if recipe[0] == "cnn" or not quick]
    if not (folder / "done").exists() and recipes:
        _train(folder, say, quick)
        (folder / "done").touch()
    moved = json.loads((folder / MOVED).read_text()) if recipes else {}
    for network, tuning, precision, bound in recipes:
        factors = folder / "gpt.factors.safetensors" if tuning == "lora" else None
        suffix = "safetensors" if precision == "bf16" else "bin"
        old, new = (folder / f"{network}.{name}.{precision}.{suffix}" for name in ("base", tuning.replace(" ", "-")))
        name = f"{network} {tuning}"
        yield Pair(f"{name} {precision}", old, new, bound, factors, told=TUNINGS[tuning], moved=moved.get(name))
    for name, before, after, bound, told in SHARED_PAIRS:
        if (SHARED / before).exists() and _wanted(name, only):
            rated = not before.endswith(".xml")
            yield Pair(name, SHARED / before, SHARED / after, bound, rated=rated, told=told)
    if _wanted("sources", only):
        yield Pair("sources", *_sources(folder), rated=False, told="no model: programs and text, in another order")


def _train(folder: Path, say: Say, quick: bool) -> None:
    from tools.benchmarks import exports, versions

    if quick:
        say("training a network for a few steps")
        _write(folder, "cnn", versions.cnn_versions(*versions.QUICK_STEPS), say)
        return
    say("training three networks, each in several versions; some minutes")
    gpt, factors = versions.gpt_versions()
    named = {f"{stem}.lora_{letter}.weight": array for name, pair in factors.items()
             for stem in [name.removesuffix(".weight")] for letter, array in zip("BA", pair, strict=True)}  # fmt: skip
    exports.safetensors(named, folder / "gpt.factors.safetensors", bfloat=True)
    _write(folder, "cnn", versions.cnn_versions(), say)
    _write(folder, "wide", versions.wide_versions(), say)
    _write(folder, "gpt", gpt, say)


def _write(folder: Path, network: str, found: Mapping[str, Mapping[str, NDArray[np.float32]]], say: Say) -> None:
    from tools.benchmarks import exports

    told = folder / MOVED
    moved = json.loads(told.read_text()) if told.exists() else {}
    tuned = {tuning: weights for tuning, weights in found.items() if tuning not in ("base", "added")}
    moved |= {f"{network} {tuning}": _moved(found["base"], weights) for tuning, weights in tuned.items()}
    told.write_text(json.dumps(moved))
    for tuning, weights in found.items():
        for precision in sorted({precision for name, _, precision, _ in RECIPES if name == network}):
            path = folder / f"{network}.{tuning.replace(' ', '-')}.{precision}"
            say(f"writing {path.name}")
            if precision == "bf16":
                exports.safetensors(weights, Path(f"{path}.safetensors"), bfloat=True)
            else:
                exports.ir(dict(weights), precision, Path(f"{path}.xml"))


def _moved(base: Mapping[str, NDArray[np.float32]], tuned: Mapping[str, NDArray[np.float32]]) -> float:
    """How far the weights of all layers moved, in shares of their size."""
    names = [name for name, array in base.items() if array.ndim > 1 and tuned[name].shape == array.shape]
    change = sum(float(np.square(tuned[name] - base[name], dtype=np.float64).sum()) for name in names)
    return math.sqrt(change / sum(float(np.square(base[name], dtype=np.float64).sum()) for name in names))


def _sources(folder: Path) -> tuple[Path, Path]:
    """Files that are no model: programs and text, some of them changed, in another order."""
    paths = [*sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:120], Path(sys.executable).resolve()]
    old, new = folder / "sources.old", folder / "sources.new"
    parts = [path.read_bytes() for path in paths]
    old.write_bytes(b"".join(parts))
    changed = [part.replace(b"self", b"this") if number % 7 == 0 else part for number, part in enumerate(parts)]
    new.write_bytes(b"".join(changed[60:] + changed[:60]))
    return old, new


def large(scratch: Path) -> Pair:
    """A model of 2 GB, most of it zeros that take no space on disk, some of its tensors tuned."""
    old, new = scratch / "large-old.safetensors", scratch / "large-new.safetensors"
    header = _large_header()
    size = LARGE_BYTES // LARGE_TENSORS
    for path, step in ((old, 0.0), (new, 1e-4)):
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + LARGE_BYTES)
            for number in range(LARGE_CHANGED):
                draw = np.random.default_rng(number)
                values = draw.standard_normal(size // 2, np.float32) * np.float32(0.05)
                values += draw.standard_normal(size // 2, np.float32) * np.float32(step)
                file.seek(len(header) + number * size * (LARGE_TENSORS // LARGE_CHANGED))
                file.write(values.astype(np.float16).tobytes())
    return Pair("large", old, new)


def _large_header() -> bytes:
    size = LARGE_BYTES // LARGE_TENSORS
    told = {
        f"layer.{n}.weight": {
            "dtype": "F16",
            "shape": [size // 2 // 4096, 4096],
            "data_offsets": [n * size, (n + 1) * size],
        }
        for n in range(LARGE_TENSORS)
    }
    encoded = json.dumps(told).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded
