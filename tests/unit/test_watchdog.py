"""Watchdogs, from file trees made for the purpose."""

from pathlib import Path

import pytest

from hardware import watchdog
from hardware.watchdog import Watchdog


def lay(root: Path, name: str, **facts: object) -> None:
    folder = root / watchdog.FOLDER / name
    folder.mkdir(parents=True)
    for key, value in facts.items():
        (folder / key).write_text(f"{value}\n")


def test_a_box_without_one(tmp_path: Path) -> None:
    found = watchdog.find(tmp_path)
    assert (found.name, found.active) == ("", False)
    assert "stays so" in found.remedy


def test_the_boards_own_that_systemd_feeds(tmp_path: Path) -> None:
    lay(tmp_path, "watchdog0", identity="iTCO_wdt", state="active", timeout=60, bootstatus=0)
    assert watchdog.find(tmp_path) == Watchdog("watchdog0", "iTCO_wdt", 60, active=True)


@pytest.mark.parametrize(("status", "reset"), [(0, False), (32, True), (33, True), (1, False), ("x", False)])
def test_why_it_restarted(tmp_path: Path, status: object, reset: bool) -> None:
    lay(tmp_path, "watchdog0", identity="iTCO_wdt", state="active", timeout=60, bootstatus=status)
    assert watchdog.find(tmp_path).has_reset == reset


def test_one_that_nobody_feeds_does_not_protect(tmp_path: Path) -> None:
    lay(tmp_path, "watchdog0", identity="iTCO_wdt", state="inactive", timeout=30)
    found = watchdog.find(tmp_path)
    assert found.reason == "nobody feeds it"
    assert "RuntimeWatchdogSec" in found.remedy


def test_the_kernels_own_is_better_than_none_and_worse_than_the_boards(tmp_path: Path) -> None:
    lay(tmp_path, "watchdog0", identity="Software Watchdog", state="active", timeout=60)
    assert watchdog.find(tmp_path).reason == "it is the kernel's own"
    lay(tmp_path, "watchdog1", identity="iTCO_wdt", state="active", timeout=60)
    assert watchdog.find(tmp_path).name == "watchdog1"


def test_one_that_says_nothing(tmp_path: Path) -> None:
    lay(tmp_path, "watchdog0")
    assert watchdog.find(tmp_path).reason == "nobody feeds it"


def test_this_machine_can_be_asked() -> None:
    assert isinstance(watchdog.find(), Watchdog)
