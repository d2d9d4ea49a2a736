"""A recording through the detector as the service runs it: the default settings, the shipped model, on the CPU."""

import csv
from pathlib import Path
from typing import NamedTuple

from appliance.errors import EventError
from appliance.events.schema import Reading, Score
from appliance.inference import engine, models
from appliance.inference.backends import openvino
from appliance.inference.detector.autoencoder import Reconstructor
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.settings import DetectorSettings
from tools.evaluation.recordings import Recording

ASSET = "evaluation"
SECOND = 1_000_000_000
# Rows are told one second apart, whatever the file's clock says: a score may not depend on it.
START = 1_700_000_000 * SECOND
BATCH = 256  # readings


class Verdict(NamedTuple):
    """Of one row."""

    alarm: bool
    score: float
    threshold: float
    cause: str


UNJUDGED = Verdict(False, 0.0, 0.0, "")


def shipped_model() -> Reconstructor:
    return engine.start(models.load(models.shipped()), openvino.create(openvino.Settings()), "CPU")


def judge(recording: Recording, settings: DetectorSettings, model: Reconstructor | None) -> list[Verdict]:
    """One verdict a row; a row between two judgements has that of the last."""
    detector = Detector(settings, model)
    scores: list[Score] = []
    for row, values in enumerate(recording.rows):
        if values:
            _push(detector, Reading(START + row * SECOND, values))
        if row % BATCH == 0:
            scores += [judged.score for judged in detector.judge()]
    scores += [judged.score for judged in detector.judge()]
    return _by_row(scores, len(recording.rows))


def write(path: Path, recording: Recording, verdicts: list[Verdict]) -> None:
    """`datetime;alarm;score;threshold`, one line a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["datetime", "alarm", "score", "threshold"])
        for time, verdict in zip(recording.times, verdicts, strict=True):
            writer.writerow([time, int(verdict.alarm), f"{verdict.score:.6g}", f"{verdict.threshold:.6g}"])


def _push(detector: Detector, reading: Reading) -> None:
    try:
        detector.push(ASSET, reading)
    except EventError as error:
        raise EventError(error.reason, f"row {(reading.at - START) // SECOND}: {error.message}") from error


def _by_row(scores: list[Score], rows: int) -> list[Verdict]:
    judged = {(score.at - START) // SECOND: score for score in scores}
    verdicts, last = [], UNJUDGED
    for row in range(rows):
        if row in judged:
            score = judged[row]
            last = Verdict(score.alarm, score.score, score.threshold, score.cause)
        verdicts.append(last)
    return verdicts
