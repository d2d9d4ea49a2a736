"""The benchmark of a change of models, small: what it counts must be right at any rate."""

import json
from pathlib import Path

import pytest

from tests.integration.conftest import PATH
from tools.benchmarks import swap


def test_a_change_of_models_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", PATH)
    report = tmp_path / "swap.json"
    code = swap.main([*["--rate", "2000", "--seconds", "6", "--assets", "10", "--changes", "2", "--json"], str(report)])
    told = json.loads(report.read_text())
    assert (told["sent"], told["lost"], told["doubled"], told["dropped"]) == (12_000, 0, 0, {})
    assert (told["changes"], told["versions"]) == (2, ["101.0.0", "102.0.0"])
    assert code == 0
