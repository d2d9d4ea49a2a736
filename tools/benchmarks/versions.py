"""Versions of small networks as they come from training: what `delta` is measured on.

cnn   reads digits: six convolutions with batch normalisation, 1.1 million weights
wide  the same with seven, up to 512 channels: 11 million weights, as many as a ResNet-18 has
gpt   continues text: four blocks of attention, 3.3 million weights

Each is trained from nothing, then tuned on data that changed (digits that are fainter; other sources of Python's own
library), as a nightly run would: a few steps at a tenth of the first rate, which rises and falls to nothing again. All
weights with two optimisers, the head alone, by low rank factors, with a layer added (an eighth of the weights of the
cnn, a fifth of those of the gpt, which nothing can predict).
"""

import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.benchmarks import learning
from tools.benchmarks.learning import Adam, Array, Momentum, Optimiser, Value

Weights = dict[str, Array]
Batch = tuple[NDArray[np.generic], NDArray[np.int64]]
Batches = Iterator[Batch]

CHANNELS = ((1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256))  # in, out; stride 2 where they double
WIDE = ((1, 128), (128, 256), (256, 512), *[(512, 512)] * 4)
ADDED = (128, 128)
ADDED_AT = 4
VOCABULARY, WIDTH, HEADS, BLOCKS, PLACES = 256, 256, 4, 4, 64
RANK, ALPHA = 8, 2.0
CNN_STEPS, GPT_STEPS = (80, 25), (80, 25)  # of the base, of each tuning
QUICK_STEPS = (8, 4)
CNN_BATCH, GPT_BATCH = 32, 8


def dice(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# The network that reads digits


def cnn(channels: Sequence[tuple[int, int]] = CHANNELS, seed: int = 1) -> Weights:
    """`bn.mean` and `bn.variance` are what batches had, not weights."""
    found: Weights = {}
    for number, (given, out) in enumerate(channels):
        found |= _block(f"layers.{number}", given, out, seed + number)
    return found | {"head.weight": _drawn(seed + 90, 10, channels[-1][1]), "head.bias": np.zeros(10, np.float32)}


def _block(name: str, given: int, out: int, seed: int) -> Weights:
    kernel = dice(seed).standard_normal((out, given, 3, 3)) * (2 / (9 * given)) ** 0.5
    return {
        f"{name}.conv.weight": kernel.astype(np.float32),
        f"{name}.bn.gain": np.ones(out, np.float32),
        f"{name}.bn.bias": np.zeros(out, np.float32),
        f"{name}.bn.mean": np.zeros(out, np.float32),
        f"{name}.bn.variance": np.ones(out, np.float32),
    }


def deeper(weights: Weights) -> Weights:
    """With a block put in, which begins near to doing nothing; the numbers of those behind it move on."""
    found: Weights = {}
    for name, array in weights.items():
        kind, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        moves = kind == "layers" and int(number) >= ADDED_AT
        found[f"layers.{int(number) + 1}.{rest}" if moves else name] = array
    added = _block(f"layers.{ADDED_AT}", *ADDED, 77)
    kernel = added[f"layers.{ADDED_AT}.conv.weight"] * np.float32(0.1)
    kernel[np.arange(ADDED[1]), np.arange(ADDED[0]), 1, 1] += 1
    return {**found, **added, f"layers.{ADDED_AT}.conv.weight": kernel}


def depth(weights: Mapping[str, Array]) -> int:
    return sum(name.endswith(".conv.weight") for name in weights)


def strides(weights: Mapping[str, Array]) -> list[int]:
    kernels = [weights[f"layers.{number}.conv.weight"] for number in range(depth(weights))]
    return [2 if kernel.shape[0] == 2 * kernel.shape[1] else 1 for kernel in kernels]


def cnn_loss(values: Mapping[str, Value], batch: Batch, live: bool) -> Value:
    node = Value(batch[0].astype(np.float32))
    arrays = {name: value.data for name, value in values.items()}
    for number, stride in enumerate(strides(arrays)):
        name = f"layers.{number}"
        node = learning.convolution(node, values[f"{name}.conv.weight"], stride)
        node = learning.batch_normalised(
            node,
            values[f"{name}.bn.gain"],
            values[f"{name}.bn.bias"],
            values[f"{name}.bn.mean"].data,
            values[f"{name}.bn.variance"].data,
            live,
        )
        node = learning.relu(node)
    node = learning.add(learning.linear(learning.pooled(node), values["head.weight"]), values["head.bias"])
    return learning.cross_entropy(node, batch[1])


def digits(tuned: bool, seed: int) -> Batches:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    images = images * np.float32(0.8) + np.float32(0.1) if tuned else images
    draw = dice(seed)
    while True:
        chosen = draw.integers(0, len(images), CNN_BATCH)
        noise = draw.standard_normal((CNN_BATCH, 1, 8, 8)).astype(np.float32)
        yield images[chosen] + np.float32(0.1) * noise, labels[chosen].astype(np.int64)


# The network that continues text


def gpt(seed: int = 2) -> Weights:
    found: Weights = {
        "emb.weight": _drawn(seed, VOCABULARY, WIDTH),
        "pos.weight": _drawn(seed + 1, PLACES, WIDTH),
    }
    for number in range(BLOCKS):
        found |= _gpt_block(f"blocks.{number}", seed + 10 * number)
    return found | {**_norm("last"), "head.weight": _drawn(seed + 99, VOCABULARY, WIDTH)}


def _gpt_block(name: str, seed: int) -> Weights:
    return {
        **_norm(f"{name}.ln1"),
        f"{name}.qkv.weight": _drawn(seed + 3, 3 * WIDTH, WIDTH),
        f"{name}.out.weight": _drawn(seed + 4, WIDTH, WIDTH),
        **_norm(f"{name}.ln2"),
        f"{name}.up.weight": _drawn(seed + 5, 4 * WIDTH, WIDTH),
        f"{name}.down.weight": _drawn(seed + 6, WIDTH, 4 * WIDTH),
    }


def _norm(name: str) -> Weights:
    return {f"{name}.gain": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}


def _drawn(seed: int, *shape: int) -> Array:
    return (dice(seed).standard_normal(shape) * 0.05).astype(np.float32)


def longer(weights: Weights) -> Weights:
    """With a block put in before the last one, whose number moves on; it adds nothing yet."""
    last = BLOCKS - 1
    moved = {name.replace(f"blocks.{last}.", f"blocks.{last + 1}."): array for name, array in weights.items()}
    added = _gpt_block(f"blocks.{last}", 555)
    added[f"blocks.{last}.out.weight"] *= np.float32(0.01)
    added[f"blocks.{last}.down.weight"] *= np.float32(0.01)
    return {**moved, **added}


def blocks(weights: Mapping[str, object]) -> int:
    return sum(name.endswith(".qkv.weight") for name in weights)


def gpt_loss(values: Mapping[str, Value], batch: Batch, live: bool) -> Value:
    text = batch[0].astype(np.int64)
    rows, places = text.shape
    node = learning.add(
        learning.take(values["emb.weight"], text), learning.take(values["pos.weight"], np.arange(places))
    )
    for number in range(blocks(values)):
        name = f"blocks.{number}"
        inner = learning.normalised(node, values[f"{name}.ln1.gain"], values[f"{name}.ln1.bias"])
        inner = learning.linear(inner, _linear(values, f"{name}.qkv.weight"))
        split = learning.swap(learning.reshape(inner, rows, places, 3 * HEADS, WIDTH // HEADS), 1, 2)
        heads = [_heads(split, part) for part in range(3)]
        inner = learning.reshape(learning.swap(learning.attention(*heads), 1, 2), rows, places, WIDTH)
        node = learning.add(node, learning.linear(inner, _linear(values, f"{name}.out.weight")))
        inner = learning.normalised(node, values[f"{name}.ln2.gain"], values[f"{name}.ln2.bias"])
        inner = learning.relu(learning.linear(inner, _linear(values, f"{name}.up.weight")))
        node = learning.add(node, learning.linear(inner, _linear(values, f"{name}.down.weight")))
    node = learning.normalised(node, values["last.gain"], values["last.bias"])
    return learning.cross_entropy(learning.linear(node, values["head.weight"]), batch[1])


def _linear(values: Mapping[str, Value], name: str) -> Value:
    """The weights, with what low rank factors there are."""
    up = values.get(f"{name}.up")
    if up is None:
        return values[name]
    return learning.add(values[name], learning.scale(learning.matmul(up, values[f"{name}.down"]), ALPHA))


def _heads(split: Value, part: int) -> Value:
    """Queries, keys or values, [rows, heads, places, width]."""
    chosen = slice(part * HEADS, (part + 1) * HEADS)

    def back(slope: Array) -> learning.Slopes:
        whole = np.zeros_like(split.data)
        whole[:, chosen] = slope
        return (whole,)

    return Value(split.data[:, chosen], (split,), back)


def text(tuned: bool, seed: int) -> Batches:
    """Sources of Python's library; those of other packages for tuning."""
    folder = Path(sysconfig.get_path("stdlib"))
    chosen = ["email", "http", "xml"] if tuned else ["asyncio", "collections", "json", "concurrent", "unittest"]
    files = sorted(path for name in chosen for path in (folder / name).rglob("*.py"))
    data = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8).astype(np.int64)
    draw = dice(seed)
    while True:
        starts = draw.integers(0, len(data) - PLACES - 1, GPT_BATCH)
        rows = data[starts[:, None] + np.arange(PLACES + 1)]
        yield rows[:, :-1], rows[:, 1:]


# Training


Loss = Callable[[Mapping[str, Value], Batch, bool], Value]


def train(weights: Weights, loss: Loss, batches: Batches, optimiser: Optimiser, steps: int, **how: bool) -> Weights:
    """New weights. `head`: nothing else is trained; `live`: batch normalisation goes on; `tuned`: see `pace`."""
    values = {name: Value(array.copy()) for name, array in weights.items()}
    trained = {
        name: value
        for name, value in values.items()
        if not name.endswith((".mean", ".variance")) and (not how.get("head") or name.startswith("head."))
    }
    for step, batch in zip(range(steps), batches, strict=False):
        loss(values, batch, how.get("live", True)).backward()
        for name in set(values) - set(trained):
            values[name].slope = None
        optimiser.step(trained, pace(step, steps) if how.get("tuned") else 1.0)
    return {name: value.data for name, value in values.items()}


def pace(step: int, steps: int) -> float:
    """The share of its rate that a tuning takes: up over its first fifth, then down to nothing."""
    return min((step + 1) / (steps / 5), (steps - step) / steps)


def factors_of(weights: Weights, steps: int, seed: int) -> dict[str, tuple[Array, Array]]:
    """Low rank factors trained beside weights that stay: U [rows, rank], V [rank, columns], in bfloat16's precision."""
    named = [name for name in weights if name.startswith("blocks.") and name.endswith(".weight")]
    values = {name: Value(array) for name, array in weights.items()}
    factors: dict[str, Value] = {}
    for place, name in enumerate(named):
        rows, columns = weights[name].shape
        factors[f"{name}.up"] = Value(np.zeros((rows, RANK), np.float32))
        factors[f"{name}.down"] = Value(_drawn(seed + place, RANK, columns))
    optimiser = Adam(1e-3)
    for step, batch in zip(range(steps), text(True, seed), strict=False):
        gpt_loss({**values, **factors}, batch, True).backward()
        for value in values.values():
            value.slope = None
        optimiser.step(factors, pace(step, steps))
    up_down = {name: (factors[f"{name}.up"].data * np.float32(ALPHA), factors[f"{name}.down"].data) for name in named}
    return {name: (bfloat(up), bfloat(down)) for name, (up, down) in up_down.items()}


def bfloat(array: Array) -> Array:
    """Rounded to what bfloat16 can hold, to even."""
    return (bfloat_bits(array).astype(np.uint32) << 16).view(np.float32)


def bfloat_bits(array: Array) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def cnn_versions(first: int = CNN_STEPS[0], then: int = CNN_STEPS[1]) -> dict[str, Weights]:
    """By the tuning, after as many steps."""
    base = train(cnn(), cnn_loss, digits(False, 1), Adam(1e-3), first)

    def tuned(seed: int, optimiser: Optimiser, start: Weights = base, **how: bool) -> Weights:
        return train(start, cnn_loss, digits(True, seed), optimiser, then, tuned=True, **how)

    return {
        "base": base,
        "adam": tuned(2, Adam(1e-4)),
        "sgd": tuned(3, Momentum(1e-3)),
        "head": tuned(4, Adam(1e-3), head=True),
        "head frozen": tuned(5, Adam(1e-3), head=True, live=False),
        "added": tuned(6, Adam(1e-4), deeper(base)),
    }


def wide_versions(first: int = CNN_STEPS[0], then: int = CNN_STEPS[1]) -> dict[str, Weights]:
    """As those of the smaller network that these are named like."""
    base = train(cnn(WIDE), cnn_loss, digits(False, 1), Adam(1e-3), first)
    return {
        "base": base,
        "adam": train(base, cnn_loss, digits(True, 2), Adam(1e-4), then, tuned=True),
        "sgd": train(base, cnn_loss, digits(True, 3), Momentum(1e-3), then, tuned=True),
    }


def gpt_versions() -> tuple[dict[str, Weights], dict[str, tuple[Array, Array]]]:
    """The versions, and the factors of the one named `lora`."""
    base = train(gpt(), gpt_loss, text(False, 1), Adam(1e-3), GPT_STEPS[0])
    base = {name: array.astype(np.float16).astype(np.float32) for name, array in base.items()}

    def tuned(seed: int, optimiser: Optimiser, start: Weights = base, **how: bool) -> Weights:
        return train(start, gpt_loss, text(True, seed), optimiser, GPT_STEPS[1], tuned=True, **how)

    factors = factors_of(base, GPT_STEPS[1], 7)
    merged = {
        name: array + factors[name][0] @ factors[name][1] if name in factors else array for name, array in base.items()
    }
    return {
        "base": base,
        "adam": tuned(2, Adam(1e-4)),
        "sgd": tuned(3, Momentum(3e-2)),
        "head": tuned(4, Adam(3e-4), head=True),
        "added": tuned(6, Adam(1e-4), longer(base)),
        "lora": merged,
    }, factors
