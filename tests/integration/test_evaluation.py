"""Recordings of machines of many kinds, by the tool that anybody can run: one configuration, the shipped model."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.evaluation import main, nab, recordings
from tools.evaluation.judge import Bench, model_of


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main.main([*map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_faults_of_a_chemical_plant(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(capsys, "tep", shared_data / "tep")
    assert report["mean_detection"] >= 0.65
    assert report["false_alarm_percent"] <= 1.1


def test_a_fan_out_of_balance(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(capsys, "fan", shared_data / "fan_vibration" / "accelerometer.csv")
    assert report["mean_area"] >= 0.90
    assert report["false_alarm_percent"] <= 1.0


def test_a_machine_before_it_fails(shared_data: Path) -> None:
    assert nab.score(shared_data / "nab", Bench(model_of(None)))["nab_standard"] > 67.0


def test_alarms_for_a_scorer_that_counts_begins(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording, out = shared_data / "nab" / nab.SERIES, tmp_path / "alarms.csv"
    report = evaluate(capsys, "csv", recording, "--train-rows", 750, "--without-model", "--begins", "--out", out)
    lines = [line.split(";") for line in out.read_text().splitlines()]
    assert lines[0][:2] == ["timestamp", "alarm"]
    assert sum(int(alarm) for _, alarm, *_ in lines[1:]) == report["alarms"] > 0


def test_a_steel_works_week_after_two_weeks(shared_data: Path) -> None:
    rows = recordings.read(shared_data / "steel_energy" / "Steel_industry_data.csv").rows
    for begin in (0, 8064, 20_160):
        verdicts = Bench(model_of(None)).judge(rows[begin : begin + 2016], 1344)[1344:]
        assert sum(verdict.alarm for verdict in verdicts) <= 0.02 * len(verdicts)


def test_a_pump_that_warms_up_for_hours_is_one_alarm(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not run as it did while it was learned; within a day only a person may say that this is well."""
    report = evaluate(capsys, "csv", shared_data / "skab" / "anomaly-free" / "anomaly-free.csv")
    assert report["alarms"] == 1


def test_steady_machines_by_the_tool(capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(capsys, "steady", "--assets", 2, "--rows", 2000, "--hop", 4, "--without-model")
    assert report["white noise"] == {"alarms_per_asset": 0.0, "false_alarm_percent": 0.0}
    assert set(report) == {"white noise", "noise, memory 0.9", "noise, memory 0.99", "cycles", "on and off"}
