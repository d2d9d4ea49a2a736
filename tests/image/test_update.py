"""From one system to the next and back: what is good is blessed, what is broken ends on the system before it."""

import re
from dataclasses import replace
from pathlib import Path

from tests.image import moments, offers, surgery
from tests.image.boxes import (
    NEW,
    OLD,
    RECORDING,
    UPDATES,
    Box,
    applied,
    comes_up,
    entries,
    give_witness,
    mount_updates,
    stands_on_old,
    up,
    vault_is_open,
    with_stick,
    witness_stands,
)
from tools.imaging.machine import dropin
from tools.imaging.places import Places

BY_ITSELF = f'[update]\nfleet = "tests"\nsystem = "newest"\nsources = ["{UPDATES}"]\n'
IMPATIENT = "[Service]\nExecStart=\nExecStart=/usr/bin/millwright health --timeout 120\n"
ENDLESS = "[Service]\nExecStart=\nExecStart=/usr/bin/sleep infinity\nTimeoutStartSec=infinity\n"
SOON = "[Timer]\nOnActiveSec=\nOnActiveSec={minutes}min\n"


def test_an_update_is_planned_and_applied(box: Box, stick: Path) -> None:
    assert applied(box, stick)


def test_no_moment_of_an_update_leaves_the_box_without_a_system(box: Box, applied: Box) -> None:
    """Nor where what no flush made durable is missing, in part or whole."""
    found = moments.look_over(box.copy("moments"), applied.machine, (OLD, NEW))
    print(found)
    assert set(found) == {OLD, f"{OLD} and {NEW}+"}


def test_a_good_update_is_blessed_and_settled_and_there_is_no_way_behind_it(applied: Box, stick: Path) -> None:
    """Nor a moment of its trial that leaves the box without a system."""
    machine = replace(with_stick(applied.copy("good"), stick), recording=RECORDING)
    with machine.running() as running:
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
    found = moments.look_over(applied.copy("moments"), machine, (OLD, NEW))
    print(found)
    assert found.keys() >= {f"{OLD} and {NEW}+", f"{OLD} and {NEW}"}


def test_a_difference_makes_the_system_that_was_signed(box: Box, where: Places, old: Path, new: Path) -> None:
    """The box has the old root; what is fetched is what changed. The rebuilt one starts by its signed hash. The
    box does it by itself, in the sandbox of a unit."""
    machine = with_stick(box.copy("nearer"), offers.stick(where, old, new, differences=True))
    with machine.running() as running:
        up(running)
        give_witness(running)
        mount_updates(running)
        plan = running.check(f"millwright update os plan --from {UPDATES}", 600)
        print(plan)
        assert "system by a difference, kernel by a difference" in plan, plan
        running.check(f"printf '%s' '{BY_ITSELF}' >>/etc/millwright/millwright.toml; millwright config check")
        running.check("systemctl start --no-block millwright-system-update.service")  # as its timer does
        running.wait_for("reboot: Restarting system", 1800)
        comes_up(running, NEW)
        said = running.check("journalctl -u millwright-system-update.service --no-pager -o cat")
        assert f"{NEW} is tried by a restart" in said, said
        witness_stands(running)
        vault_is_open(running)
        said = running.check("millwright update os status")
        assert f"The last one, {NEW}, was committed" in said, said
        running.shut_down()


def test_broken_updates_one_after_the_other_end_on_the_old_system(applied: Box, where: Places) -> None:
    """Four of them lie beside the old system, each with one try: the boot loader takes the highest version first."""
    machine = applied.copy("broken")
    image = surgery.take_entry(machine)
    surgery.overwrite(machine, f"millwright_{NEW}", 1024, bytes(4096))  # what every start reads
    surgery.put_entry(machine, _changed(where, image, "", sign=False), "1.4")
    surgery.put_entry(machine, _changed(where, image, "rdinit=/usr/bin/false"), "1.3")
    surgery.put_entry(machine, image, "1.2")
    surgery.put_entry(machine, _with_another_bit(image))
    with machine.running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        console = running.console()
        for version in ("1.4", NEW):
            assert f"Error loading \\EFI\\Linux\\millwright_{version}+0-1.efi: Access denied" in console, version
        assert "Attempted to kill init" in console, "1.3 did not panic"
        assert "dm-verity device corrupted" in console, "1.2 was not rotten"
        # The trap: the firmware refused it and took the old one, and the variable still names what was counted.
        said = running.check("journalctl -b -u systemd-bless-boot --no-pager")
        assert f"'millwright_{NEW}.efi' was counted, and 'millwright_{OLD}.efi' was booted" in said, said
        running.shut_down()
    given_up = {f"millwright_{version}+0-1.efi" for version in ("1.4", "1.3", "1.2", NEW)}
    assert surgery.listed(machine) == {f"millwright_{OLD}.efi", *given_up}


def test_what_the_firmware_refuses_each_time_needs_nobody(applied: Box) -> None:
    """Where the boot loader is among the firmware's options once more than there are tries."""
    machine = applied.copy("denied")
    surgery.put_entry(machine, _with_another_bit(surgery.take_entry(machine)), tries=3)
    with machine.running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        assert running.console().count("Access denied") == 3
        said = running.check("journalctl -u millwright-boot-options.service --no-pager -o cat")
        assert "written: 4 boot options" in said, said
        assert "the boot options stand" in said, said
        assert f"millwright_{NEW}+0-3.efi" in entries(running)
        running.shut_down()


def test_an_update_that_starts_and_does_not_work_ends_on_the_old_system(applied: Box, where: Places) -> None:
    machine = applied.copy("unhealthy")
    image = surgery.take_entry(machine)
    surgery.put_entry(machine, _changed(where, image, "systemd.mask=millwright-detect.service"))
    with replace(machine, extra=dropin("millwright-health.service", "impatient", IMPATIENT)).running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        running.shut_down()


def test_a_trial_that_lost_the_network_port_is_given_up(applied: Box) -> None:
    """As with a kernel that has no driver for it: nobody could reach the box to take it back."""
    machine = applied.copy("deaf")
    surgery.put_entry(machine, surgery.take_entry(machine))
    impatient = dropin("millwright-health.service", "impatient", IMPATIENT)
    with replace(machine, network="", extra=impatient).running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        assert "it was there before the update, and is gone" in running.console()
        running.shut_down()


def test_a_trial_that_comes_to_no_end_is_given_up(applied: Box) -> None:
    machine = applied.copy("endless")
    surgery.put_entry(machine, surgery.take_entry(machine))
    endless = dropin("millwright-health.service", "endless", ENDLESS)
    with replace(
        machine, extra=(*endless, *dropin("millwright-deadline.timer", "soon", SOON.format(minutes=5)))
    ).running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        restarted = re.search(r"\[ *(\d+)\.\d+\] reboot: Restarting system", running.console())
        assert restarted, "it was not restarted by its kernel"
        assert int(restarted[1]) > 5 * 60
        running.shut_down()


def test_a_trial_that_gets_stuck_before_its_system_is_given_up(applied: Box, where: Places) -> None:
    """One that finds no root, and one that the data do not open to. Nobody is there to type."""
    machine = applied.copy("stuck")
    image = surgery.take_entry(machine)
    surgery.put_entry(machine, _changed(where, image, f"roothash={'0' * 64}"), "1.3")
    surgery.put_entry(machine, _changed(where, image, "", known=False), "1.2")
    soon = dropin("millwright-initrd-deadline.timer", "soon", SOON.format(minutes=3))
    with replace(machine, extra=soon).running() as running:
        comes_up(running, OLD)
        stands_on_old(running)
        assert "does not find its root or its data" in running.console()
        assert "a trial of a new system, which does not open the data" in running.console()
        running.shut_down()
    assert surgery.listed(machine) == {f"millwright_{OLD}.efi", "millwright_1.3+0-1.efi", "millwright_1.2+0-1.efi"}


def _changed(where: Places, image: Path, words: str, *, sign: bool = True, known: bool = True) -> Path:
    other = image.with_name("changed.efi")
    other.write_bytes(image.read_bytes())
    surgery.other_words(where, other, words, sign=sign, known=known)
    return other


def _with_another_bit(image: Path) -> Path:
    """Of the kernel in it."""
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    other = image.with_name("tampered.efi")
    other.write_bytes(data)
    return other
