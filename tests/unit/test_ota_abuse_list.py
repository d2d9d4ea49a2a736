"""ota/ABUSE.md names tests for each attempt; they exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "ota" / "ABUSE.md").read_text().splitlines() if line.startswith("| ")][1:]
NAMED = re.compile(r"`(test_\w+)`")


def test_every_attempt_has_tests_and_every_test_exists() -> None:
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(LINES) > 25
    assert [line for line in LINES if not NAMED.search(line)] == []
    assert sorted({name for line in LINES for name in NAMED.findall(line)} - written) == []
