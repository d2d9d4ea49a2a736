"""Faults of a real pump, judged as the product judges them: default settings, shipped model, OpenVINO on the CPU."""

import csv
import json
from pathlib import Path

import pytest

from tools.evaluation import figures, main, recordings

LEARNED = 400  # rows


@pytest.fixture(scope="session")
def pump(shared_data: Path) -> Path:
    return shared_data / "skab"


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, dict[str, float]]:
    assert main.main([*map(str, arguments), "--json"]) == 0
    report: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)
    return report


def test_faults_are_found_and_few_alarms_are_false(
    pump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(capsys, "skab", pump, tmp_path)
    assert report["detector"]["f1"] >= 0.82
    assert report["detector"]["false_alarm_percent"] <= 20.0
    assert report["always alarm"]["f1"] < 0.75
    counts = [_read_back(tmp_path / recording.name, recording) for recording in recordings.skab(pump)]
    assert figures.plain(figures.total(counts)) == report["detector"]


def _read_back(path: Path, recording: recordings.Recording) -> figures.Counts:
    """What a scorer finds in the file: one line a row, in the recording's own times."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter=";"))
    assert [line["datetime"] for line in lines] == recording.times
    return figures.count((line["alarm"] == "1" for line in lines[LEARNED:]), recording.labels[LEARNED:])


def test_the_model_takes_nothing_from_the_other_branches(
    pump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = evaluate(capsys, "skab", pump, tmp_path)["detector"]
    alone = evaluate(capsys, "skab", pump, tmp_path, "--without-model")["detector"]
    assert both["f1"] >= alone["f1"] - 0.005
    assert both["false_alarm_percent"] <= alone["false_alarm_percent"] + 1.0


def test_any_table_of_numbers_can_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "table.csv", tmp_path / "out.csv"
    rows = [
        f"day {row},{row % 7},{row % 5 + (100 if row >= 500 else 0)},text,{'' if row % 3 else row % 2}"
        for row in range(600)
    ]
    source.write_text("\n".join(["when,a,b,note,sparse", *rows]) + "\n")
    report = evaluate(capsys, "csv", source, "--train-rows", 300, "--out", out)
    assert report["rows"] == 300
    assert report["channels"] == 3
    with out.open(newline="") as file:
        alarms = [int(line["alarm"]) for line in csv.DictReader(file, delimiter=";")]
    assert sum(alarms[:500]) == 0
    assert all(alarms[520:])


def test_a_file_that_is_no_table_is_named_with_its_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.csv").write_text("time\n")
    assert main.main(["csv", str(tmp_path / "empty.csv"), "--out", str(tmp_path / "out.csv")]) == 1
    assert "empty.csv: has no rows of numbers" in capsys.readouterr().err
    assert main.main(["skab", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "<group>/<n>.csv" in capsys.readouterr().err
