"""Fixtures that every folder of tests shares."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recordings of real machines. They are kept beside the project, never in it: their licences differ.

    `../shared/data`, or `$MILLWRIGHT_SHARED/data`. Without them a test is skipped and says so; CI must have them.
    """
    data = Path(os.environ.get("MILLWRIGHT_SHARED") or ROOT.parent / "shared") / "data"
    if data.is_dir():
        return data
    reason = f"no recordings at {data}: set MILLWRIGHT_SHARED to the folder that holds data/"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
