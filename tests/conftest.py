"""Fixtures that every folder of tests shares, and the rule about what may be missing: in CI, nothing."""

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI") == "true"

# Whoever is started in the background of a shell ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# No test judges speed, and an example does not fail because the machine is busy.
settings.register_profile("millwright", deadline=None)
settings.load_profile("millwright")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recordings of real machines. They are kept beside the project, never in it: their licences differ.

    `../shared/data`, or `$MILLWRIGHT_SHARED/data`.
    """
    data = Path(os.environ.get("MILLWRIGHT_SHARED") or ROOT.parent / "shared") / "data"
    if not data.is_dir():
        pytest.skip(f"no recordings at {data}: set MILLWRIGHT_SHARED to the folder that holds data/")
    return data


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """A test that is skipped on a laptop, with its reason, fails in CI: there, whatever is missing is a fault."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not accept: {report.longrepr[2]}"
    return report
