"""A small convolutional network that reads digits, trained in numpy on the images that scikit-learn ships.

    python -m tools.training.digits FOLDER

writes FOLDER/digits, a bundle in float32, and FOLDER/train.npz and FOLDER/test.npz, the images it learned from and
those it did not. It shows what quantisation costs on a real model:

    millwright models quantize FOLDER/digits FOLDER/digits-int8 --data FOLDER/train.npz --holdout FOLDER/test.npz
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from threadpoolctl import threadpool_limits

from appliance.inference import cards
from appliance.inference.port import Spec

SIDE, CLASSES = 8, 10  # pixels, digits
CHANNELS = (16, 32)  # of the two layers of convolutions
HIDDEN = 1024
EPOCHS, BATCH, RATE, SEED = 10, 64, 1.2e-3, 20_264
HELD_OUT = 450  # images of 1797

Array = NDArray[np.float32]

CARD = """\
name = "digits"
version = "1.0.0"
task = "classifier"
description = "Reads a handwritten digit of 8 by 8 pixels. Two layers of convolutions, two dense ones."

[[inputs]]
name = "image"
shape = [-1, 1, 8, 8]
layout = "NCHW"
given = {{ dtype = "uint8", layout = "NHWC", mean = [0.0], deviation = [16.0] }}

[[outputs]]
name = "scores"
shape = [-1, 10]

[decoder]
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[training]
data = "Optical Recognition of Handwritten Digits, test part (UCI; CC BY 4.0), as scikit-learn ships it."
data_sha256 = "{digest}"
rows = {rows}
seed = {seed}
by = "python -m tools.training.digits"

[evaluation]
accuracy = {accuracy}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.training.digits", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    accuracy = build(options.folder, options.epochs)
    print(f"{options.folder}/digits reads {accuracy:.2%} of {HELD_OUT} digits that it has not seen")
    return 0


def build(folder: Path, epochs: int = EPOCHS) -> float:
    """Make the bundle and the samples in `folder`: the accuracy on those that were held out."""
    images, digits = _digits()
    learn, judge = slice(0, len(images) - HELD_OUT), slice(len(images) - HELD_OUT, None)
    net = Net(np.random.default_rng(SEED))
    with threadpool_limits(1):  # of matrices as small as these, more threads make slow work
        net.train(images[learn] / np.float32(16), digits[learn], epochs)
    accuracy = float(np.mean(net.classes(images[judge] / np.float32(16)) == digits[judge]))
    bundle = folder / "digits"
    bundle.mkdir(parents=True)
    write(net.weights, bundle / "model.xml")
    _write_card(bundle, images[learn], accuracy)
    for name, part in (("train", learn), ("test", judge)):
        rows = images[part].transpose(0, 2, 3, 1).astype(np.uint8)
        np.savez(folder / f"{name}.npz", image=rows, labels=digits[part])
    return accuracy


def _digits() -> tuple[Array, NDArray[np.int64]]:
    """Images [n, 1, 8, 8] of 0 to 16, and what they show, in an order of ours."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    return data.images[order, None].astype(np.float32), data.target[order].astype(np.int64)


def _write_card(bundle: Path, learned: Array, accuracy: float) -> None:
    digest = hashlib.sha256(learned.tobytes()).hexdigest()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as text:
        text.write(CARD.format(digest=digest, rows=len(learned), seed=SEED, accuracy=round(accuracy, 4)))
        text.flush()
        inputs = [Spec("image", "float32", (-1, 1, SIDE, SIDE))]
        cards.complete(bundle, Path(text.name), inputs, [Spec("scores", "float32", (-1, CLASSES))])


class Net:
    """Two convolutions of 3 by 3, the largest of 2 by 2, two dense layers; trained by Adam on the cross entropy."""

    def __init__(self, rng: np.random.Generator) -> None:
        first, second = CHANNELS
        sizes = ((9, first), (9 * first, second), (second * SIDE * SIDE // 4, HIDDEN), (HIDDEN, CLASSES))
        self._rng = rng
        self.weights: list[Array] = []
        for entering, leaving in sizes:
            spread = np.sqrt(2.0 / entering)
            self.weights.append((rng.standard_normal((entering, leaving)) * spread).astype(np.float32))
            self.weights.append(np.zeros(leaving, np.float32))

    def train(self, images: Array, digits: NDArray[np.int64], epochs: int) -> None:
        steps, means, squares = 0, _like(self.weights), _like(self.weights)
        for epoch in range(epochs):
            order = self._rng.permutation(len(images))
            for start in range(0, len(order), BATCH):
                drawn = order[start : start + BATCH]
                steps += 1
                rate = RATE * (1 - epoch / epochs)
                for place, slope in enumerate(self._slopes(images[drawn], digits[drawn])):
                    means[place] += 0.1 * (slope - means[place])
                    squares[place] += 0.001 * (slope * slope - squares[place])
                    spread = np.sqrt(squares[place] / (1 - 0.999**steps)) + 1e-8
                    self.weights[place] -= (rate / (1 - 0.9**steps)) * means[place] / spread

    def classes(self, images: Array) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._forward(images)["scores"].argmax(axis=1)
        return found

    def _forward(self, images: Array) -> dict[str, Any]:
        w1, b1, w2, b2, w3, b3, w4, b4 = self.weights
        count, (first, second) = len(images), CHANNELS
        seen: dict[str, Any] = {"patches1": _patches(images)}
        planes = np.maximum(seen["patches1"] @ w1 + b1, 0).reshape(count, SIDE, SIDE, first).transpose(0, 3, 1, 2)
        seen["planes"], seen["patches2"] = planes, _patches(planes)
        half = SIDE // 2
        fine = np.maximum(seen["patches2"] @ w2 + b2, 0).reshape(count, half, 2, half, 2, second)
        pooled = fine.max(axis=(2, 4), keepdims=True)
        seen["kept"] = (fine == pooled) & (fine > 0)
        seen["flat"] = pooled.reshape(count, half, half, second).transpose(0, 3, 1, 2).reshape(count, -1)
        seen["hidden"] = np.maximum(seen["flat"] @ w3 + b3, 0)
        seen["scores"] = seen["hidden"] @ w4 + b4
        return seen

    def _slopes(self, images: Array, digits: NDArray[np.int64]) -> list[Array]:
        """Of the mean cross entropy, by each of the weights."""
        _, _, w2, _, w3, _, w4, _ = self.weights
        seen, count, (first, second) = self._forward(images), len(images), CHANNELS
        powers = np.exp(seen["scores"] - seen["scores"].max(axis=1, keepdims=True))
        last = powers / powers.sum(axis=1, keepdims=True)
        last[np.arange(count), digits] -= 1
        last /= count
        hidden = (last @ w4.T) * (seen["hidden"] > 0)
        half = SIDE // 2
        flat = (hidden @ w3.T).reshape(count, second, half, half).transpose(0, 2, 3, 1)
        fine = (seen["kept"] * flat[:, :, None, :, None]).reshape(-1, second)
        planes = _unpatched((fine @ w2.T).reshape(count, SIDE, SIDE, first, 3, 3)) * (seen["planes"] > 0)
        coarse = planes.transpose(0, 2, 3, 1).reshape(-1, first)
        pairs = ((seen["patches1"], coarse), (seen["patches2"], fine), (seen["flat"], hidden), (seen["hidden"], last))
        return [slope for entered, left in pairs for slope in (entered.T @ left, left.sum(axis=0))]


def write(weights: Sequence[Array], path: Path) -> None:
    """As OpenVINO IR: input `image` [-1, 1, 8, 8] of 0 to 1, output `scores` [-1, 10] that add up to 1."""
    w1, b1, w2, b2, w3, b3, w4, b4 = weights
    image = ops.parameter([-1, 1, SIDE, SIDE], np.float32, name="image")
    image.output(0).set_names({"image"})
    node = _convolution(_convolution(image, w1, b1, "conv1"), w2, b2, "conv2")
    node = ops.max_pool(node, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], name="pool").output(0)
    node = ops.reshape(node, ops.constant(np.array([0, -1], np.int64), name="flat/shape"), True, name="flat")
    node = ops.relu(_dense(node, w3, b3, "dense1"), name="dense1/rectified")
    scores = ops.softmax(_dense(node, w4, b4, "dense2"), 1, name="softmax")
    scores.output(0).set_names({"scores"})
    model = ov.Model([ops.result(scores, name="scores")], [image], "digits")
    ov.serialize(model, path, path.with_suffix(".bin"))


def _convolution(node: Any, weights: Array, bias: Array, name: str) -> Any:
    leaving = weights.shape[1]
    kernel = np.ascontiguousarray(weights.reshape(-1, 3, 3, leaving).transpose(3, 0, 1, 2))
    one = [1, 1]
    node = ops.convolution(node, ops.constant(kernel, name=f"{name}/kernel"), one, one, one, one, name=name)
    node = ops.add(node, ops.constant(bias.reshape(1, leaving, 1, 1), name=f"{name}/bias"), name=f"{name}/sum")
    return ops.relu(node, name=f"{name}/rectified")


def _dense(node: Any, weights: Array, bias: Array, name: str) -> Any:
    node = ops.matmul(node, ops.constant(weights, name=f"{name}/weights"), False, False, name=name)
    return ops.add(node, ops.constant(bias[None], name=f"{name}/bias"), name=f"{name}/sum")


def _patches(planes: Array) -> Array:
    """[n, c, h, w] -> [n * h * w, c * 9]: what a convolution of 3 by 3 sees at each place."""
    count, channels, height, width = planes.shape
    padded = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return views.transpose(0, 2, 3, 1, 4, 5).reshape(count * height * width, channels * 9)


def _unpatched(patches: Array) -> Array:
    """[n, h, w, c, 3, 3] -> [n, c, h, w]: what all patches say of each place, added up."""
    count, height, width, channels = patches.shape[:4]
    padded = np.zeros((count, channels, height + 2, width + 2), np.float32)
    for down in range(3):
        for right in range(3):
            padded[:, :, down : down + height, right : right + width] += patches[..., down, right].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1]


def _like(weights: Sequence[Array]) -> list[Array]:
    return [np.zeros_like(weight) for weight in weights]


if __name__ == "__main__":
    sys.exit(main())
