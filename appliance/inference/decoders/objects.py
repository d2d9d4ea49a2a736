"""Objects and where they are, of the usual families of detectors.

    task = "objects"

    [decoder]
    form = "yolo"                  # [n, 4 + classes, candidates]; see `form` for the others
    labels = ["person", "forklift"]
    at_least = 0.4
    overlap = 0.5

A result: `{"objects": [{"label": "person", "index": 0, "score": 0.91, "box": [left, top, right, bottom]}, ...]}` in
falling order of the scores. Boxes are in the units of the model's answer (pixels of its input, or shares of it).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from appliance.inference.decoders.port import Plain, as_float, chosen, label, of_rank, rounded
from appliance.inference.port import Array, Spec

CANDIDATES = 1000  # the best of a row that overlaps are looked at among: the work grows with their square

Numbers = NDArray[np.float64]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """How the answer's numbers are laid out, and which objects are told."""

    form: Annotated[
        Literal["yolo", "yolo-objectness", "ssd", "tensors"],
        Meta(
            description="`yolo`: [n, 4 + classes, candidates] or its transpose; `yolo-objectness`: [n, candidates, "
            "5 + classes]; `ssd`: [1, 1, candidates, 7] of row, class, score, box; `tensors`: boxes, scores and "
            "classes in tensors of their own."
        ),
    ] = "yolo"
    output: Annotated[str, Meta(description="The tensor of `yolo` and `ssd`; empty: the only one.")] = ""
    boxes: Annotated[str, Meta(description="`tensors`: [n, candidates, 4].")] = "boxes"
    scores: Annotated[str, Meta(description="`tensors`: [n, candidates], or [n, candidates, classes].")] = "scores"
    classes: Annotated[str, Meta(description="`tensors`: [n, candidates]; not used where scores tell classes.")] = ""
    box: Annotated[
        Literal["", "centre", "corners", "corners-yx"],
        Meta(
            description="A box is centre x, y, width, height; or left, top, right, bottom; or top, left, bottom, "
            "right. Empty: as the form has it."
        ),
    ] = ""
    labels: Annotated[list[str], Meta(max_length=100_000, description="Names of the classes, in order.")] = []
    first_class: Annotated[int, Meta(ge=0, le=100_000, description="Number of the class that `labels` begin with.")] = 0
    at_least: Annotated[float, Meta(description="A lower score is not told.")] = 0.25
    overlap: Annotated[
        float, Meta(gt=0, le=1, description="Of two boxes of a class that share more than this, the better stays.")
    ] = 0.45
    most: Annotated[int, Meta(ge=1, le=CANDIDATES, description="Objects told of each row.")] = 100


class _Found(NamedTuple):
    """Candidates of one row: boxes [k, 4] as left, top, right, bottom; scores [k]; classes [k]."""

    boxes: Numbers
    scores: Numbers
    classes: NDArray[np.int64]


def create(settings: Settings, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> "Objects":
    if settings.form == "tensors":
        names = (
            of_rank(chosen(outputs, settings.boxes, "boxes"), "boxes", 3).name,
            of_rank(chosen(outputs, settings.scores, "scores"), "scores", 2, 3).name,
            of_rank(chosen(outputs, settings.classes, "classes"), "classes", 2).name if settings.classes else "",
        )
        return Objects(settings, names)
    rank = 4 if settings.form == "ssd" else 3
    return Objects(settings, (of_rank(chosen(outputs, settings.output, "output"), "output", rank).name,))


class Objects:
    def __init__(self, settings: Settings, names: tuple[str, ...]) -> None:
        self._settings, self._names = settings, names
        usual = {"ssd": "corners", "tensors": "corners"}.get(settings.form, "centre")
        self._box = settings.box or usual

    def decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        tensors = [as_float(outputs[name]) if name else None for name in self._names]
        first = tensors[0]
        assert first is not None  # it has a name in every form
        if self._settings.form == "ssd":
            rows = max((len(tensor) for tensor in inputs.values()), default=1)
            return [self._result(found) for found in self._of_ssd(first, rows)]
        if self._settings.form == "tensors":
            return [self._result(self._of_tensors(tensors, row)) for row in range(len(first))]
        return [self._result(self._of_yolo(row)) for row in first]

    def _of_yolo(self, row: Numbers) -> _Found:
        if self._settings.form == "yolo-objectness":
            scores = row[:, 5:] * row[:, 4:5]
        else:
            # Candidates outnumber 4 + classes in every such model; exporters disagree on which axis comes first.
            row = row.T if row.shape[0] < row.shape[1] else row
            scores = row[:, 4:]
        return self._best(row[:, :4], scores)

    def _of_ssd(self, answer: Numbers, rows: int) -> list[_Found]:
        """Candidates of all rows stand in one list; a negative row ends it."""
        listed = answer.reshape(-1, answer.shape[-1])
        return [
            _Found(self._corners(mine[:, 3:7]), mine[:, 2], mine[:, 1].astype(np.int64))
            for mine in (listed[listed[:, 0] == row] for row in range(rows))
        ]

    def _of_tensors(self, tensors: Sequence[Numbers | None], row: int) -> _Found:
        boxes, scores, classes = tensors
        assert boxes is not None
        assert scores is not None
        if scores.ndim == 3:
            return self._best(boxes[row], scores[row])
        kinds = np.zeros(len(scores[row])) if classes is None else classes[row]
        return _Found(self._corners(boxes[row]), scores[row], kinds.astype(np.int64))

    def _best(self, boxes: Numbers, scores: Numbers) -> _Found:
        """Each candidate as what it most likely is."""
        kinds = scores.argmax(axis=1)
        return _Found(self._corners(boxes), scores[np.arange(len(scores)), kinds], kinds)

    def _corners(self, boxes: Numbers) -> Numbers:
        if self._box == "centre":
            half = boxes[:, 2:4] / 2.0
            return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        return boxes[:, [1, 0, 3, 2]] if self._box == "corners-yx" else boxes

    def _result(self, found: _Found) -> Plain:
        settings = self._settings
        usable = np.flatnonzero((found.scores >= settings.at_least) & np.isfinite(found.boxes).all(axis=1))
        ranked = usable[np.argsort(-found.scores[usable], kind="stable")][:CANDIDATES]
        kept = _apart(found.boxes[ranked], found.classes[ranked], settings.overlap)[: settings.most]
        return {"objects": [self._object(found, int(place)) for place in ranked[kept]]}

    def _object(self, found: _Found, place: int) -> Plain:
        index = int(found.classes[place])
        return {
            "label": label(self._settings.labels, index - self._settings.first_class),
            "index": index,
            "score": rounded(found.scores[place]),
            "box": [rounded(edge) for edge in found.boxes[place]],
        }


def _apart(boxes: Numbers, classes: NDArray[np.int64], overlap: float) -> list[int]:
    """Places of the boxes, the best first, that share at most `overlap` with a better one of their class."""
    size = np.clip(boxes[:, 2] - boxes[:, 0], 0.0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0.0, None)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        width = np.minimum(boxes[left, 2], boxes[best, 2]) - np.maximum(boxes[left, 0], boxes[best, 0])
        height = np.minimum(boxes[left, 3], boxes[best, 3]) - np.maximum(boxes[left, 1], boxes[best, 1])
        shared = np.clip(width, 0.0, None) * np.clip(height, 0.0, None)
        union = np.maximum(size[left] + size[best] - shared, 1e-12)
        left = left[(shared / union <= overlap) | (classes[left] != classes[best])]
    return kept
