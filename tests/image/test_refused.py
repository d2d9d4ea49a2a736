"""Updates that are cut, altered, replayed, for another board or signed by strangers, and a disk without room for one:
each is told for what it is, nothing is written, and the box goes on."""

from pathlib import Path

from tests.image import offers
from tests.image.boxes import (
    FEW_MINUTES,
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
STATE = "/var/lib/millwright/os"
CUT_AT = 1_000_000
OTHER = f"{offers.NAME}-0.9.image"  # on the strange stick alone
PORT = 8008


def test_what_is_wrong_with_an_update_is_told_and_harms_nothing(box: Box, stick: Path, strange: Path) -> None:
    machine = with_stick(with_stick(box.copy("refused"), stick), strange, "strange")
    with machine.running() as running:
        running.wait_probe()
        assert state(running) == "running"
        mount_updates(running)
        running.check(f"mkdir -p {STRANGE}; mount -o ro /dev/disk/by-label/strange {STRANGE}")
        before = entries(running)
        for case in (_of_strangers, _cut, _altered, _no_room, _for_another_board, _replayed):
            case(running, stick)
            assert entries(running) == before, case.__name__
            assert _begun(running) == "", case.__name__
        has_its_data(running)
        vault_is_open(running)
        running.shut_down()


def _of_strangers(running: Running, stick: Path) -> None:
    _refused(
        running,
        f"apply --from {STRANGE}/stranger",
        f"{STRANGE}/stranger: timestamp was signed by 0/1 keys",
        "-> Nothing was taken. Ask whoever signs this repository.",
    )


def _cut(running: Running, stick: Path) -> None:
    place, _ = offers.root_part(stick)
    made = f"head -c {CUT_AT} {UPDATES}/{place} >/run/part"
    _apply_with_another_part(running, place, made, f"cut off at byte {CUT_AT:,}", "-> It is tried again later.")


def _altered(running: Running, stick: Path) -> None:
    """Other bytes, as many as were signed."""
    place, length = offers.root_part(stick)
    made = f"truncate -s {length} /run/part"
    _apply_with_another_part(running, place, made, "its bytes are not the signed ones", "-> It was thrown away.")


def _apply_with_another_part(running: Running, place: str, made: str, why: str, remedy: str) -> None:
    """It is told of this very part; what was begun can be given up, once."""
    running.check(f"{made}; mount --bind /run/part {UPDATES}/{place}")
    told = place.removeprefix("millwright/targets/")
    _refused(running, f"apply --from {UPDATES}", "fetching ...", f"{UPDATES}/{told}: {why}", remedy)
    running.check(f"umount {UPDATES}/{place}; rm /run/part")
    assert "/files/" in _begun(running)
    said = running.check("millwright update os rollback", FEW_MINUTES)
    assert f"{NEW} is given up." in said, said
    assert "It runs still" not in said, said
    _refused(running, "rollback", "no system is being installed")


def _no_room(running: Running, stick: Path) -> None:
    running.check("fallocate -l $(($(df --output=avail -B1 /var | tail -1) - 50000000)) /var/lib/filled")
    remedy = "\n  -> space: Make room: lower record.budget_mb, or remove models."
    said = _refused(running, f"apply --from {UPDATES}", f"{OLD} -> {NEW}", remedy, "It is not done.")
    assert said.count("\n  -> ") == 1, said  # it is room alone that lacks
    vault_is_open(running)
    running.check("rm /var/lib/filled")


def _for_another_board(running: Running, stick: Path) -> None:
    """Before it, nothing here knows of such a release."""
    _refused(running, f"plan 0.9 --from {UPDATES}", f"no repository has os/{OTHER}")
    _refused(
        running,
        f"apply 0.9 --from {STRANGE}/board",
        "it is for arm64, this box is x86-64",
        "-> board: Ask for the release of this box's kind.",
        "It is not done.",
    )


def _replayed(running: Running, stick: Path) -> None:
    """What is older than what the box has seen, on the other stick, is not believed. From a stick, which may be old, it
    takes the files that it knows of itself; from a server nothing."""
    known = _known(running)
    said = running.check(f"millwright update os plan --from {UPDATES}", FEW_MINUTES)
    assert f"{OLD} -> {NEW}" in said, said
    # The stick's own list has no such file: that it lacks one is what this box knows.
    _refused(running, f"plan 0.9 --from {UPDATES}", f"{UPDATES}: there is no 'os/", f".{OTHER}'")
    serve = f"python3 -m http.server --bind 127.0.0.1 --directory {UPDATES}/millwright {PORT}"
    running.check(f"{serve} >/run/served 2>&1 & until ss -Hltn | grep -q :{PORT}; do sleep 1; done")
    _refused(
        running,
        f"plan --from http://127.0.0.1:{PORT}",
        "New timestamp version",
        "-> It is older than what this box knows; nothing was taken.",
    )
    assert _known(running) == known


def _refused(running: Running, verb: str, *why: str) -> str:
    answer = running.run(f"millwright update os {verb}", 1200)
    print(answer.text)
    assert answer.code == 1, answer.text
    for one in why:
        assert one in answer.text, answer.text
    return answer.text


def _begun(running: Running) -> str:
    """The files of an update that is under way."""
    return running.check(f"find {STATE} -type f \\( -path '*/files/*' -o -path '*/staged/*' \\)")


def _known(running: Running) -> str:
    """What the box has seen of repositories."""
    return running.check(f"sha256sum {STATE}/trust/*.json")
