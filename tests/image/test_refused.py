"""Updates that are cut, altered, replayed, for another board or signed by strangers, and a disk without room for one:
each is told for what it is, nothing is written, and the box goes on."""

from pathlib import Path

from tests.image import offers
from tests.image.boxes import (
    NEW,
    OLD,
    UPDATES,
    Box,
    entries,
    has_its_data,
    mount_updates,
    state,
    vault_is_open,
    with_stick,
)
from tools.imaging.machine import Running

STRANGE = "/run/strange"


def test_what_is_wrong_with_an_update_is_told_and_harms_nothing(box: Box, stick: Path, strange: Path) -> None:
    machine = with_stick(with_stick(box.copy("refused"), stick), strange, "strange")
    with machine.running() as running:
        running.wait_probe()
        assert state(running) == "running"
        mount_updates(running)
        running.check(f"mkdir -p {STRANGE}; mount -o ro /dev/disk/by-label/strange {STRANGE}")
        before = entries(running)
        _of_strangers(running)
        _cut_or_altered(running, stick)
        _no_room(running)
        _for_another_board(running)
        _replayed(running)
        assert entries(running) == before
        has_its_data(running)
        vault_is_open(running)
        running.shut_down()


def _of_strangers(running: Running) -> None:
    _refused(running, f"apply --from {STRANGE}/stranger", "sign")


def _cut_or_altered(running: Running, stick: Path) -> None:
    """A part that ends early, then one with other bytes; what was begun can be given up."""
    place, length = offers.root_part(stick)
    part = f"{UPDATES}/{place}"
    for made in (f"head -c 1000000 {part} >/run/part", f"rm /run/part; truncate -s {length} /run/part"):
        running.check(f"{made}; mount --bind /run/part {part}")
        said = _refused(running, f"apply --from {UPDATES}", "->")
        print(said)
        running.check(f"umount {part}")
        running.run("millwright update os rollback")


def _no_room(running: Running) -> None:
    running.check("fallocate -l $(($(df --output=avail -B1 /var | tail -1) - 50000000)) /var/lib/filled")
    _refused(running, f"plan --from {UPDATES}", "Make room")
    vault_is_open(running)
    running.check("rm /var/lib/filled")


def _for_another_board(running: Running) -> None:
    _refused(running, f"apply 0.9 --from {STRANGE}/board", "it is for arm64, this box is x86-64")


def _replayed(running: Running) -> None:
    """What is older than what the box has seen is no lie that it believes: it offers what it knows, or nothing."""
    answer = running.run(f"millwright update os plan --from {UPDATES}", 600)
    print(answer.text)
    assert f"{OLD} -> {NEW}" in answer.text or answer.code == 1, answer.text


def _refused(running: Running, verb: str, why: str) -> str:
    answer = running.run(f"millwright update os {verb}", 1200)
    assert answer.code == 1, answer.text
    assert why in answer.text, answer.text
    return answer.text
