"""`millwright models quantize`: eight bits for a number, and what that costs in accuracy and saves in size and time.

It calibrates with samples like those the model will see, and judges the result by samples it was not calibrated with.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.cli import instance, measuring
from appliance.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from appliance.config.schema import Config
    from appliance.inference.models import Card
    from appliance.inference.port import Backend, Model
    from appliance.inference.quantisation import Cost, Likeness
    from appliance.inference.samples import Samples

HISTORY = "history"
NEWEST = 20_000  # readings of an asset
MEASURE_S = 0.5
DATA = "'history' (what this box recorded), FILE.csv, FILE.npz by the inputs' names, FILE.npy, or a folder of .npy"


class _Source(NamedTuple):
    title: str
    model: Path
    card: "Card | None"  # None of a bare model's file


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="MODEL|FOLDER|FILE", help="one of this box, a bundle, or a model's file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the new bundle, or a new .xml for a FILE")
    parser.add_argument("--data", required=True, metavar="DATA", help=DATA)
    parser.add_argument("--holdout", metavar="DATA", help="judge by these (default: the last fifth of --data)")
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="to calibrate with (default: 300)")
    parser.add_argument("--preset", choices=("mixed", "performance"), default="mixed", help="of NNCF")
    parser.add_argument("--at-least", type=float, default=0.99, metavar="SHARE", help="of the accuracy (default: 0.99)")
    parser.add_argument("--version", metavar="X.Y.Z", help="of the new bundle (default: the next patch)")


def run(args: argparse.Namespace) -> int:
    from appliance import computing
    from appliance.services.words import json_text

    config, _ = instance.configuration(args)
    source = _source(args.source, config)
    _check_out(args.out, source)
    backend = computing.inference_backend(config)
    with tempfile.TemporaryDirectory(prefix="millwright-") as name:
        small = Path(name) / "model.xml"
        report = _quantised(args, config, source, backend, small)
        if report["kept"] >= args.at_least:
            _write(args.out, source, small, report, args.version)
    print(json_text(report) if args.json else "\n".join(_table(report)))
    if report["kept"] < args.at_least:
        raise ModelError(
            f"{args.out} is not written: {report['kept']:.2%} of the accuracy is left, not {args.at_least:.2%}",
            "Calibrate with more and other --data and --rows, or be content with less: --at-least.",
        )
    return 0


def _source(text: str, config: "Config") -> _Source:
    from appliance import computing
    from appliance.inference import cards, models

    path = Path(text)
    if path.suffix in cards.SUFFIXES and path.is_file():
        return _Source(path.name, path, None)
    if path.is_dir():
        bundle = models.load(path, named=False)
    else:
        bundle = models.load(computing.library(config).find(text).folder)
    return _Source(f"{bundle.card.name}@{bundle.card.version}", bundle.model, bundle.card)


def _check_out(out: Path, source: _Source) -> None:
    if out.exists():
        raise ModelError(f"{out}: is there already", "Name a new one, or remove it first.")
    if source.card is None and out.suffix != ".xml":
        raise ModelError(f"{out}: a quantised model's file is OpenVINO IR", "Name a file that ends in .xml.")


def _quantised(
    args: argparse.Namespace, config: "Config", source: _Source, backend: "Backend", small: Path
) -> dict[str, Any]:
    from appliance.inference import quantisation

    before = backend.compile(source.model, "CPU")
    calibration, holdout = _samples(args, config, source, before)
    free = all(spec.shape[0] == -1 for spec in before.inputs)
    rows = quantisation.CALIBRATED if free else max(before.inputs[0].shape[0], 1)
    quantisation.quantise(source.model, calibration, small, args.preset, rows)
    after = backend.compile(small, "CPU")
    likeness = quantisation.likeness(before, after, holdout, _scores(source, before, holdout))
    costs = [quantisation.cost(path, model, MEASURE_S) for path, model in ((source.model, before), (small, after))]
    return _report(source.title, len(calibration), len(holdout), likeness, *costs)


def _scores(source: _Source, model: "Model", judged: "Samples") -> str:
    """The output with a score for each class; empty of a model that is no classifier."""
    if source.card is not None and source.card.task == "classifier":
        return str(source.card.decoder.get("output") or model.outputs[0].name)
    return "" if judged.labels is None else model.outputs[0].name


def _samples(args: argparse.Namespace, config: "Config", source: _Source, model: "Model") -> "tuple[Samples, Samples]":
    """To calibrate with and to judge by, as the model's own inputs."""
    from appliance.inference import samples
    from appliance.inference.preparation import Preparation

    preparation = Preparation(source.card.inputs) if source.card else None
    specs = preparation.specs if preparation else model.inputs
    window = source.card.window if source.card else 0

    def found(data: str) -> "Samples":
        if data == HISTORY:
            given = samples.windowed(_recorded(config), specs, window, "the recorded history")
        else:
            given = samples.load(Path(data), specs, window)
        inputs = preparation.prepare(given.inputs) if preparation else given.inputs
        return samples.Samples(inputs, given.labels)

    everything = found(args.data)
    if args.holdout:
        return samples.spread(everything, args.rows), found(args.holdout)
    if len(everything) < 2:
        raise ModelError(f"{args.data}: has one sample", "Give more, or others with --holdout.")
    learn, judge = samples.split(everything, 0.2)
    return samples.spread(learn, args.rows), judge


def _recorded(config: "Config") -> "Iterator[NDArray[np.float64]]":
    """Each recorded point of each asset: its newest values in order of time."""
    import itertools

    import numpy as np

    from appliance.store.history import FILE
    from appliance.store.reader import reading

    with reading(config.paths.state / FILE) as reader:
        for asset in reader.assets():
            newest = list(itertools.islice(reader.readings(asset, newest_first=True), NEWEST))[::-1]
            for point in reader.points(asset):
                yield np.array([one.values.get(point, np.nan) for one in newest], np.float64)


def _report(
    title: str, calibrated: int, judged: int, likeness: "Likeness", before: "Cost", after: "Cost"
) -> dict[str, Any]:
    def told(cost: "Cost", accuracy: float | None) -> dict[str, Any]:
        known = {} if accuracy is None else {"accuracy": round(accuracy, 5)}
        return {
            "bytes": cost.bytes,
            "latency_ms": round(cost.latency_s * 1e3, 4),
            "rows_per_s": round(cost.rows_per_s, 1),
            **known,
        }

    return {
        "model": title,
        "calibrated_with": calibrated,
        "judged_by": judged,
        "before": told(before, likeness.before),
        "after": told(after, likeness.after),
        "size": round(after.bytes / before.bytes, 4),
        likeness.kind: round(likeness.share, 5),
        "kept": round(likeness.kept, 5),
    }


def _write(out: Path, source: _Source, small: Path, report: dict[str, Any], version: str | None) -> None:
    """A bundle where the source is one; else the model's file with its weights."""
    import msgspec

    from appliance.inference import cards, models

    if source.card is None:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in (small, small.with_suffix(".bin")):
            shutil.copyfile(path, out.with_suffix(path.suffix))
        return
    card = msgspec.structs.replace(
        source.card,
        version=version or _next_patch(source.card.version),
        backend="",
        evaluation=_figures(source.card, report),
    )
    cards.write(small.parent, card)
    models.load(small.parent, named=False)  # what the version or a figure spoils is said now
    shutil.copytree(small.parent, out)


def _figures(card: "Card", report: dict[str, Any]) -> dict[str, float]:
    """What was measured now; the figures of the model before are told as its own."""
    before = {f"before_{name}": value for name, value in card.evaluation.items()}
    known: dict[str, float] = {name: report[name] for name in ("agreement", "energy") if name in report}
    if "accuracy" in report["after"]:
        known |= {"accuracy": report["after"]["accuracy"], "before_accuracy": report["before"]["accuracy"]}
    return {**before, **known}


def _next_patch(version: str) -> str:
    head, _, patch = version.rpartition(".")
    return f"{head}.{int(patch) + 1}"


def _table(report: dict[str, Any]) -> list[str]:
    from appliance.services.words import amount, columns

    rows = [("", "SIZE", "ONE ROW", "ROWS/S", "ACCURACY")]
    for which in ("before", "after"):
        told = report[which]
        accuracy = f"{told['accuracy']:.2%}" if "accuracy" in told else ""
        rows.append(
            (
                which,
                measuring.size(told["bytes"]),
                f"{amount(told['latency_ms'])} ms",
                amount(told["rows_per_s"]),
                accuracy,
            )
        )
    kind = "agreement" if "agreement" in report else "energy"
    words = {"agreement": "of the classes are the same", "energy": "of the answers' energy is the same"}
    return [
        f"{report['model']}: calibrated with {report['calibrated_with']} rows, judged by {report['judged_by']} others",
        "",
        *columns(rows),
        "",
        f"{report['size']:.1%} of the size; {report[kind]:.2%} {words[kind]}; {report['kept']:.2%} of the accuracy",
    ]
