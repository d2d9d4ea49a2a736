"""A recording through the detector as the service runs it: the default settings, the shipped model, on the CPU."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from appliance import plugins
from appliance.errors import EventError
from appliance.events.schema import Reading, Score
from appliance.inference import engine, models
from appliance.inference.detector.autoencoder import Reconstructor
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.settings import DetectorSettings
from appliance.inference.policy import Terms
from appliance.inference.port import Backend
from tools.evaluation import figures
from tools.evaluation.recordings import Recording, Values

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
    branch: str


UNJUDGED = Verdict(False, 0.0, 0.0, "", "")


class Bench(NamedTuple):
    """What all recordings of an evaluation are judged with."""

    model: Reconstructor | None
    hop: int = 1

    def settings(self, learn_rows: int) -> DetectorSettings:
        return DetectorSettings(hop=self.hop, learn_rows=learn_rows)

    def judge(self, rows: Sequence[Values], learn_rows: int) -> list[Verdict]:
        """One verdict a row; a row between two judgements has that of the last."""
        return self._feed(Detector(self.settings(learn_rows), self.model), rows, 0)

    def learn(self, rows: Sequence[Values]) -> bytes:
        """What a detector knows that learned from exactly these rows."""
        detector = Detector(self.settings(len(rows)), self.model)
        self._feed(detector, rows, 0)
        return detector.snapshot()

    def go_on(self, learned: bytes, learn_rows: int, rows: Sequence[Values]) -> list[Verdict]:
        """Verdicts of rows that follow what was learned."""
        detector = Detector(self.settings(learn_rows), self.model)
        detector.restore(learned)
        return self._feed(detector, rows, learn_rows)

    def _feed(self, detector: Detector, rows: Sequence[Values], begin: int) -> list[Verdict]:
        scores: list[Score] = []
        for row, values in enumerate(rows):
            if values:
                _push(detector, Reading(START + (begin + row) * SECOND, values))
            if row % BATCH == 0:
                scores += [judged.score for judged in detector.judge()]
        scores += [judged.score for judged in detector.judge()]
        return _by_row(scores, begin, len(rows))


def model_of(folder: Path | None) -> Reconstructor:
    """The shipped model, or the one of a bundle's folder, on the CPU."""
    bundle = models.load(folder or models.shipped())
    plugin = plugins.load("appliance.inference.backends", "openvino")
    backend: Backend = plugin.create(plugin.Settings())
    return engine.reconstructor(bundle, backend, Terms(devices=("CPU",), isolate="none"))


def write(path: Path, recording: Recording, verdicts: Iterable[Verdict], begins: bool = False) -> None:
    """`<time>;alarm;score;threshold;cause;branch`, one line a row. The first column has the recording's name of it.
    `alarm` is 1 while one stands, or on the row at which it `begins` alone."""
    verdicts = list(verdicts)
    stands = [verdict.alarm for verdict in verdicts]
    alarms = figures.begins(stands) if begins else stands
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow([recording.clock, "alarm", "score", "threshold", "cause", "branch"])
        for time, alarm, verdict in zip(recording.times, alarms, verdicts, strict=True):
            score, threshold = f"{verdict.score:.6g}", f"{verdict.threshold:.6g}"
            writer.writerow([time, int(alarm), score, threshold, verdict.cause, verdict.branch])


def _push(detector: Detector, reading: Reading) -> None:
    try:
        detector.push(ASSET, reading)
    except EventError as error:
        raise EventError(error.reason, f"row {(reading.at - START) // SECOND}: {error.message}") from error


def _by_row(scores: list[Score], begin: int, rows: int) -> list[Verdict]:
    judged = {(score.at - START) // SECOND: score for score in scores}
    verdicts, last = [], UNJUDGED
    for row in range(begin, begin + rows):
        if row in judged:
            score = judged[row]
            last = Verdict(score.alarm, score.score, score.threshold, score.cause, score.branch)
        verdicts.append(last)
    return verdicts
