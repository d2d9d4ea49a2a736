"""Decoders: from a model's numbers to plain results; and the preparation of what goes in."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance import plugins
from appliance.errors import ModelError
from appliance.inference.decoders import classifier, embedding, forecast, objects, reconstruction
from appliance.inference.models import Given, Port
from appliance.inference.port import Array, Spec
from appliance.inference.preparation import Preparation
from appliance.inference.serving import DECODERS


def spec(name: str, *shape: int) -> Spec:
    return Spec(name, "float32", shape)


def decoded(
    plugin: Any, options: dict[str, Any], outputs: Mapping[str, Array], inputs: Mapping[str, Array] = {}
) -> Any:
    def specs(tensors: Mapping[str, Array]) -> list[Spec]:
        return [Spec(name, str(array.dtype), (-1, *array.shape[1:])) for name, array in tensors.items()]

    chosen = msgspec.convert(options, plugin.Settings)
    with np.errstate(all="ignore"):  # as when models are served: what is no number is computed on
        results = plugin.create(chosen, specs(inputs), specs(outputs)).decode(inputs, outputs)
    msgspec.json.encode(results)  # plain values only
    return results


def floats(*values: Any) -> Array:
    return np.array(values, np.float32)


# ---- classes --------------------------------------------------------------------------------------------------------


def test_the_likeliest_class_comes_first() -> None:
    [row] = decoded(classifier, {"labels": ["good", "bad", "ugly"], "top": 2}, {"scores": floats([0.2, 0.7, 0.1])})
    assert (row["label"], row["index"], row["score"]) == ("bad", 1, 0.7)
    assert [one["label"] for one in row["classes"]] == ["bad", "good"]


def test_a_class_without_a_name_is_told_by_its_number() -> None:
    [row] = decoded(classifier, {}, {"scores": floats([0.2, 0.7, 0.1])})
    assert row["label"] == "1"


def test_no_class_reaches_the_threshold() -> None:
    [row] = decoded(classifier, {"at_least": 0.9}, {"scores": floats([0.2, 0.7, 0.1])})
    assert row == {"label": None, "index": None, "score": None, "classes": []}


def test_activations() -> None:
    scores = {"scores": floats([0.0, 1000.0, -1000.0])}
    soft = decoded(classifier, {"activation": "softmax"}, scores)[0]["classes"]
    assert [one["score"] for one in soft] == [1.0, 0.0, 0.0]
    sigmoid = decoded(classifier, {"activation": "sigmoid"}, scores)[0]["classes"]
    assert [round(one["score"], 3) for one in sigmoid] == [1.0, 0.5, 0.0]


@given(arrays.arrays(np.float32, (3, 7), elements=st.floats(width=32)))
def test_any_number_is_classified(scores: Array) -> None:
    for row in decoded(classifier, {"activation": "none", "top": 7}, {"scores": scores}):
        told = [one["score"] for one in row["classes"] if one["score"] is not None]
        assert told == sorted(told, reverse=True)


def test_labels_that_are_not_as_many_as_the_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="2 names for 3 classes"):
        classifier.create(classifier.Settings(labels=["a", "b"]), [], [spec("scores", -1, 3)])


# ---- objects --------------------------------------------------------------------------------------------------------


def boxes_of(row: dict[str, Any]) -> list[tuple[str, list[float]]]:
    return [(one["label"], one["box"]) for one in row["objects"]]


def test_yolo_keeps_the_best_of_boxes_that_overlap() -> None:
    # centre x, y, width, height, then a score for each of two classes; candidates are columns
    candidates = floats(
        [10, 10, 4, 4, 0.9, 0.1],
        [10.5, 10, 4, 4, 0.8, 0.1],  # nearly the same box
        [10.2, 10, 4, 4, 0.1, 0.7],  # of the other class
        [30, 30, 4, 4, 0.6, 0.2],
        [50, 50, 4, 4, 0.1, 0.05],  # too unlikely
        [70, 70, 4, 4, 0.0, 0.0],
        [71, 70, 4, 4, 0.0, 0.0],
    ).T[None]
    [row] = decoded(objects, {"labels": ["cat", "dog"]}, {"out": candidates})
    assert boxes_of(row) == [
        ("cat", [8.0, 8.0, 12.0, 12.0]),
        ("dog", [8.2, 8.0, 12.2, 12.0]),
        ("cat", [28.0, 28.0, 32.0, 32.0]),
    ]
    assert decoded(objects, {"labels": ["cat", "dog"]}, {"out": candidates.transpose(0, 2, 1)}) == [row]


def test_yolo_with_an_objectness_of_its_own() -> None:
    answer = floats([[10, 10, 4, 4, 0.5, 0.9, 0.1], [30, 30, 4, 4, 0.9, 0.2, 0.8]])
    [row] = decoded(objects, {"form": "yolo-objectness"}, {"out": answer})
    assert [(one["index"], one["score"]) for one in row["objects"]] == [(1, 0.72), (0, 0.45)]


def test_ssd_tells_the_row_of_each_candidate() -> None:
    listed = floats([1, 2, 0.9, 0.1, 0.2, 0.3, 0.4], [0, 1, 0.8, 0.5, 0.5, 0.6, 0.6], [-1, 0, 0, 0, 0, 0, 0])
    rows = decoded(
        objects,
        {"form": "ssd", "labels": ["one", "two"], "first_class": 1},
        {"out": listed[None, None]},
        {"image": np.zeros((2, 3, 8, 8), np.float32)},
    )
    assert boxes_of(rows[0]) == [("one", [0.5, 0.5, 0.6, 0.6])]
    assert boxes_of(rows[1]) == [("two", [0.1, 0.2, 0.3, 0.4])]


def test_boxes_scores_and_classes_in_tensors_of_their_own() -> None:
    outputs = {
        "boxes": floats([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "scores": floats([0.3, 0.9]),
        "classes": floats([4, 5]),
    }
    options = {"form": "tensors", "classes": "classes", "box": "corners-yx"}
    assert boxes_of(decoded(objects, options, outputs)[0]) == [("5", [6, 5, 8, 7]), ("4", [2, 1, 4, 3])]


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float32, (2, 6, 30), elements=st.floats(width=32)))
def test_any_answer_gives_boxes_of_numbers(answer: Array) -> None:
    for row in decoded(objects, {"at_least": 0.0, "most": 7}, {"out": answer}):
        assert len(row["objects"]) <= 7
        assert all(edge is not None for one in row["objects"] for edge in one["box"])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_boxes_that_stay_do_not_overlap_and_those_that_go_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 20, (40, 2)), rng.uniform(1, 8, (40, 2))
    outputs = {
        "boxes": np.concatenate([corner, corner + size], axis=1).astype(np.float32)[None],
        "scores": rng.uniform(0.3, 1.0, (1, 40)).astype(np.float32),
    }
    [row] = decoded(objects, {"form": "tensors", "overlap": 0.4}, outputs)
    kept = [np.array(one["box"]) for one in row["objects"]]
    assert all(shared(one, other) <= 0.4 + 1e-6 for rank, one in enumerate(kept) for other in kept[:rank])
    for box in outputs["boxes"][0]:
        assert max(shared(box, other) for other in kept) > 0.4 - 1e-6


def shared(one: Array, other: Array) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return float(common / (area - common))


# ---- embeddings, forecasts, reconstructions ------------------------------------------------------------------------


def test_an_embedding_has_length_one() -> None:
    rows = decoded(embedding, {}, {"out": floats([3.0, 4.0], [0.0, 0.0])})
    assert rows == [{"embedding": [0.6, 0.8], "length": 5.0}, {"embedding": [0.0, 0.0], "length": 0.0}]


def test_a_forecast_of_channels() -> None:
    answer = floats([[1, 10], [2, 20], [3, 30]])
    [row] = decoded(forecast, {"channels": ["warm", "wet"], "step_s": 60.0}, {"out": answer})
    assert row == {"step_s": 60.0, "values": {"warm": [1.0, 2.0, 3.0], "wet": [10.0, 20.0, 30.0]}}


def test_a_forecast_of_quantiles() -> None:
    answer = floats([[1, 2, 3], [4, 5, 6]])
    [row] = decoded(forecast, {"quantiles": [0.1, 0.5, 0.9]}, {"out": answer})
    assert row["values"] == {"0": {"0.1": [1.0, 4.0], "0.5": [2.0, 5.0], "0.9": [3.0, 6.0]}}


def test_a_reconstruction_tells_what_is_unusual() -> None:
    given, back = floats([1, 1, 1, 1], [0, 0, 0, 0]), floats([1, 1, 3, 1], [0, 0, 0, 0])
    rows = decoded(reconstruction, {}, {"back": back}, {"windows": given})
    assert rows[0] == {"error": 1.0, "worst": 2, "explained": 0.0}
    assert rows[1] == {"error": 0.0, "worst": 0, "explained": None}


WRONG: dict[str, tuple[Any, dict[str, Any], list[Spec], str]] = {
    "no such output": (classifier, {"output": "probs"}, [spec("scores", -1, 3)], "there is no 'probs'"),
    "which output": (classifier, {}, [spec("a", -1, 3), spec("b", -1, 3)], "decoder.output is missing"),
    "an image": (classifier, {}, [spec("scores", -1, 3, 8, 8)], "4 dimensions, not 2"),
    "a flat detector": (objects, {}, [spec("out", -1, 84)], "2 dimensions, not 3"),
    "no boxes": (objects, {"form": "tensors"}, [spec("scores", -1, 5)], "there is no 'boxes'"),
    "quantiles": (forecast, {"quantiles": [0.5]}, [spec("out", -1, 12, 3)], "1 for an axis of 3"),
    "channels": (forecast, {"channels": ["a"]}, [spec("out", -1, 12, 3)], "1 for an axis of 3"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_settings_that_do_not_fit_the_model_are_refused(name: str) -> None:
    plugin, options, outputs, problem = WRONG[name]
    with pytest.raises(ModelError, match=problem) as caught:
        plugin.create(msgspec.convert(options, plugin.Settings), [], outputs)
    assert caught.value.remedy


def test_every_decoder_is_a_plugin_with_defaults() -> None:
    found = plugins.names(DECODERS)
    assert found == ["classifier", "embedding", "forecast", "objects", "reconstruction"]
    for name in found:
        plugin = plugins.load(DECODERS, name)
        plugin.Settings()
        assert f'task = "{name}"' in plugin.__doc__


# ---- preparation ----------------------------------------------------------------------------------------------------


def test_an_image_is_scaled_and_turned() -> None:
    port = Port("image", [-1, 3, 4, 5], layout="NCHW", given=Given("uint8", "NHWC", [10, 20, 30], [2, 4, 8]))
    preparation = Preparation([port])
    assert preparation.specs == (Spec("image", "uint8", (-1, 4, 5, 3)),)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 5, 3), np.uint8)
    prepared = preparation.prepare({"image": pixels})["image"]
    expected = ((pixels - np.array([10.0, 20.0, 30.0])) / [2.0, 4.0, 8.0]).transpose(0, 3, 1, 2)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, rtol=1e-6)


def test_what_needs_no_preparation_is_left_alone() -> None:
    rows = np.ones((2, 3), np.int64)
    assert Preparation([Port("x", [-1, 3], "int64")]).prepare({"x": rows})["x"] is rows


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (Given(deviation=[0.0]), "given.deviation has a zero"),
        (Given(mean=[1, 2]), "has 2 numbers for 3 channels"),
        (Given(layout="NHC"), "does not name 4 axes"),
        (Given(layout="NHWD"), "is no order of 'NCHW'"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(given: Given, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        Preparation([Port("image", [-1, 3, 4, 5], layout="NCHW", given=given)])


def test_what_does_not_fit_is_refused_in_the_callers_terms() -> None:
    preparation = Preparation([Port("image", [-1, 3, 4, 5], layout="NCHW", given=Given("uint8", "NHWC"))])
    with pytest.raises(ModelError, match=r"'image' takes uint8\[\?, 4, 5, 3\], not float32\[1, 3, 4, 5\]"):
        preparation.prepare({"image": np.zeros((1, 3, 4, 5), np.float32)})
