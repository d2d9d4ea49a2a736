"""From one system to the next and back: what is good is blessed, what is broken ends on the system before it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.image import surgery
from tests.image.boxes import (
    NEW,
    OLD,
    UPDATES,
    Box,
    applied,
    comes_up,
    entries,
    mount_updates,
    stands_on_old,
    vault_is_open,
    with_stick,
    witness_stands,
)
from tools.imaging.machine import Machine, dropin
from tools.imaging.places import Places

Spoil = Callable[[Places, Machine], None]
IMPATIENT = "[Service]\nExecStart=\nExecStart=/usr/bin/millwright health --timeout 120\n"


def test_an_update_is_planned_and_applied(box: Box, stick: Path) -> None:
    assert applied(box, stick)


def test_a_good_update_is_blessed_and_settled_and_there_is_no_way_behind_it(applied: Box, stick: Path) -> None:
    with with_stick(applied.copy("good"), stick).running() as running:
        comes_up(running, NEW)
        running.check("systemctl is-active boot-complete.target systemd-bless-boot.service millwright-settle.service")
        assert {f"millwright_{OLD}.efi", f"millwright_{NEW}.efi"} == set(entries(running))
        witness_stands(running)
        vault_is_open(running)
        said = running.check("millwright update os status")
        assert f"The last one, {NEW}, was committed" in said, said
        assert f"Nothing older than {NEW} is taken" in said, said
        mount_updates(running)
        refused = running.run(f"millwright update os apply {OLD} --from {UPDATES}", 600)
        assert refused.code == 1, refused.text
        assert f"{OLD} is older than {NEW}, which was committed" in refused.text, refused.text
        running.shut_down()


def _unsigned(where: Places, machine: Machine) -> None:
    image = surgery.take_entry(machine)
    surgery.other_words(where, image, "", sign=False)
    surgery.put_entry(machine, image)


def _tampered(_where: Places, machine: Machine) -> None:
    """One bit of the kernel."""
    image = surgery.take_entry(machine)
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    surgery.put_entry(machine, image)


def _panic(where: Places, machine: Machine) -> None:
    image = surgery.take_entry(machine)
    surgery.other_words(where, image, "init=/usr/bin/false")
    surgery.put_entry(machine, image)


def _rotten(_where: Places, machine: Machine) -> None:
    """Bytes of the root file system that every start reads."""
    surgery.put_entry(machine, surgery.take_entry(machine))
    surgery.overwrite(machine, f"millwright_{NEW}", 1024, bytes(4096))


def _unhealthy(where: Places, machine: Machine) -> None:
    """It starts, and does not do its work."""
    image = surgery.take_entry(machine)
    surgery.other_words(where, image, "systemd.mask=millwright-detect.service")
    surgery.put_entry(machine, image)


@pytest.mark.parametrize("spoil", [_unsigned, _tampered, _panic, _rotten, _unhealthy])
def test_a_broken_update_ends_on_the_old_system(applied: Box, where: Places, spoil: Spoil) -> None:
    machine = applied.copy("broken")
    spoil(where, machine)
    extra = dropin("millwright-health.service", "impatient", IMPATIENT) if spoil is _unhealthy else ()
    with replace(machine, extra=extra).running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        if spoil in (_unsigned, _tampered):
            # The trap: the firmware refused it and took the old one, and the variable still names what was counted.
            said = running.check("journalctl -b -u systemd-bless-boot --no-pager")
            assert re.search(r"was counted, and .* was booted", said), said
        running.shut_down()
