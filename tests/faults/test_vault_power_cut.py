"""The vault when the power goes in any step of any change, and when its process is killed.

MILLWRIGHT_POWER_CUTS=1000 pytest tests/faults/test_vault_power_cut.py
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from appliance.errors import BindingError
from appliance.vault import backup, chest
from appliance.vault.chest import Chest
from appliance.vault.recovery import RecoveryKey
from appliance.vault.secret import Secret
from tests.faults import vault_writer
from tests.vaults import Box, Place, PowerCut, held

CUTS = int(os.environ.get("MILLWRIGHT_POWER_CUTS", "60"))
SEED = os.environ.get("MILLWRIGHT_SEED", "1")
BOOTS = 12  # that each cut is followed by, each with other things lost
CONTENT = {"mqtt/plant": b"pump", "mqtt/office": b"desk", "tls/broker/key": b"k" * 300}
OFFICE = RecoveryKey(Secret(bytes(32)))

Content = dict[str, bytes]
Change = Callable[[Chest], object]

CHANGES: dict[str, tuple[Change, Content]] = {
    "put": (lambda vault: vault.put("mqtt/new", Secret(b"new")), {**CONTENT, "mqtt/new": b"new"}),
    "put over": (lambda vault: vault.put("mqtt/plant", Secret(b"new")), {**CONTENT, "mqtt/plant": b"new"}),
    "remove": (lambda vault: vault.remove("tls/broker/key"), {name: CONTENT[name] for name in list(CONTENT)[:2]}),
    "rotate binding": (lambda vault: vault.rotate("binding"), CONTENT),
    "rotate key": (lambda vault: vault.rotate("key"), CONTENT),
    "rotate namespace": (lambda vault: vault.rotate("namespace", "mqtt"), CONTENT),
    "rotate secret": (lambda vault: vault.rotate("secret", "mqtt/plant"), CONTENT),
    "bind": (lambda vault: vault.bind(Box("tpm", 30)), CONTENT),
    "add recipient": (lambda vault: vault.add_recipient(RecoveryKey.new().recipient("depot").line()), CONTENT),
    "remove recipient": (lambda vault: vault.remove_recipient("office"), CONTENT),
    "renew recovery": (Chest.renew_recovery, CONTENT),
}


def made(seed: str) -> Place:
    place = Place(random.Random(seed))
    place.make(CONTENT, "aes-256-gcm", OFFICE.recipient("office")).close()
    return place


def cut(place: Place, step: int, act: Callable[[], object]) -> bool:
    """Whether the power went before it was done."""
    place.disk.steps, place.disk.cut = 0, step
    try:
        act()
    except PowerCut:
        place.disk.power_back()
        return True
    place.disk.cut = 0
    return False


def every_cut(act: Callable[[Place], object], check: Callable[[Place, bool], None]) -> int:
    """`act` on a vault, with the power gone in each of its steps, then what `check` says. How many steps it has."""
    for step in count(1):
        ended = True
        for boot in range(BOOTS):
            place = made(f"{SEED} {step} {boot}")
            was_cut = cut(place, step, lambda place=place: act(place))  # type: ignore[misc]
            check(place, was_cut)
            ended = ended and not was_cut
        if ended:
            return step - 1
    raise AssertionError


def settled(place: Place) -> None:
    """The counter is where the file is, so that no older file is taken for it; both copies are the same."""
    with place.open() as vault:
        anchor = vault._opened().head.anchor
    assert place.tally is not None
    assert place.tally.count == anchor
    first, second = place.copies()
    assert first == second is not None


@pytest.mark.parametrize("name", list(CHANGES))
def test_the_power_goes_in_any_step_of_a_change(name: str) -> None:
    """It is done or not, the box opens it, and the recovery keys that there were or are do, too."""
    change, after = CHANGES[name]
    found: list[Content] = []

    def act(place: Place) -> None:
        with place.open() as vault:
            change(vault)

    def check(place: Place, was_cut: bool) -> None:
        with place.open() as vault:
            found.append(held(vault))
            assert vault.status().damaged == ()
        assert found[-1] in ((CONTENT, after) if was_cut else (after,))
        settled(place)
        if name != "renew recovery":
            with place.recover(Box()) as vault:
                assert held(vault) == found[-1]

    assert every_cut(act, check) == 9  # two files written and synced, renamed, their folder synced twice; the counter
    assert CONTENT in found
    assert after in found


def test_the_power_goes_while_a_vault_is_made() -> None:
    def act(place: Place) -> None:
        place.make().close()

    for step in count(1):
        for boot in range(BOOTS):
            place = Place(random.Random(f"{SEED} {step} {boot}"))
            was_cut = cut(place, step, lambda place=place: act(place))  # type: ignore[misc]
            if chest.exists(place.folder, place.disk):
                with place.open() as vault:
                    assert held(vault) == {}
            else:
                assert was_cut
                place.make(CONTENT).close()
        if not was_cut:
            assert step == 12
            return


def test_the_power_goes_while_it_is_recovered() -> None:
    """Who has the recovery key can always try again."""
    boards: list[Box] = []

    def act(place: Place) -> None:
        boards.append(Box())
        place.recover(boards[-1]).close()

    def check(place: Place, was_cut: bool) -> None:
        try:
            vault = place.open(boards[-1])
        except BindingError:
            assert was_cut
            vault = place.recover(boards[-1])
        with vault:
            assert held(vault) == CONTENT

    assert every_cut(act, check) == 9


def test_the_power_goes_while_a_copy_is_mended() -> None:
    def act(place: Place) -> None:
        first, second = place.copies()
        assert first is not None
        steps, place.disk.cut = place.disk.cut, 0
        place.lay(first[:100] + b"?" + first[101:], second)
        place.disk.steps, place.disk.cut = 0, steps
        place.open().close()

    def check(place: Place, was_cut: bool) -> None:
        with place.open() as vault:
            assert held(vault) == CONTENT
        settled(place)

    assert every_cut(act, check) == 8


def test_the_power_goes_while_a_backup_replaces_a_vault() -> None:
    """There is the old one or the restored one."""
    source = made(SEED)
    with source.open() as vault:
        data = vault.backup()
    new = Box()

    def restore(place: Place) -> None:
        backup.restore(
            place.folder, data, source.key, None, "here", new, place.tally, place.now, replacing=True, disk=place.disk
        )

    def check(place: Place, was_cut: bool) -> None:
        try:
            vault = place.open(new)
        except BindingError:
            assert was_cut
            vault = place.open()
        with vault:
            assert held(vault) == CONTENT

    assert every_cut(restore, check) == 15


def test_the_counter_is_advanced_where_the_power_went_before_it() -> None:
    """Or the file that this one has replaced would still be taken for the latest."""
    place = made(SEED)
    older = place.copies()
    vault = place.open()
    assert cut(place, 9, lambda: vault.put("mqtt/plant", Secret(b"new")))
    settled(place)
    place.lay(*older)
    with pytest.raises(BindingError, match="older than the latest"):
        place.open()


def test_killed_at_any_moment(tmp_path: Path, repository: Path) -> None:
    """Nothing acknowledged is lost, nothing is half-written, nothing locks its owner out."""
    command = [sys.executable, vault_writer.__file__, str(tmp_path / "box"), str(CUTS), SEED]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False, timeout=170 + CUTS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    print(counts)
    assert counts["cuts"] == CUTS
    assert counts["interrupted"] > CUTS / 10
    assert counts["acknowledged"] > CUTS
