"""What the desk notes: nothing hides behind something else, and who varies what he asks for fills no journal."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.bus.memory import MemoryBroker, MemoryBus
from appliance.errors import MillwrightError, RefusedError, VaultError
from appliance.services.vault import MIRRORED, Mirror
from appliance.vault.audit import journal
from appliance.vault.desk import MAX_SUBJECTS, Desk
from appliance.vault.memory import MemoryKeeper
from appliance.vault.policy import Peer, Policy, Rule
from appliance.vault.protocol import Request, Verb
from appliance.vault.recovery import RecoveryKey
from appliance.vault.secret import Secret

OWNER, READER = Peer(990), Peer(1000)
RULES = (Rule(uid=1000, read=("open/**",), write=("mine/*",)),)


class Room:
    """A desk, with a journal on disk whose clock stands still: all is within one minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = journal.Journal(folder, Ed25519PrivateKey.from_private_bytes(bytes(32)), None, lambda: 10**18)
        self.desk = Desk(MemoryKeeper(lambda: 1), lambda: Policy(OWNER.uid, RULES), self.journal)

    def ask(self, peer: Peer, *request: Any) -> MillwrightError | bytes:
        try:
            return self.desk.answer(peer, Request(*request))
        except MillwrightError as error:
            return error

    def notes(self) -> list[dict[str, Any]]:
        self.journal.close()
        entries = [json.loads(line) for line in journal.read(self.folder)]
        return [entry for entry in entries if entry["action"].startswith("vault.")]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_second_deed_of_the_same_kind_is_not_folded_into_the_first(room: Room) -> None:
    for layer in ("key", "binding", "key"):
        room.ask(OWNER, Verb.ROTATE, "", layer)
    assert [note["detail"] for note in room.notes()] == [
        {"about": "key"},
        {"about": "binding"},
        {"about": "key", "repeated": 1},
    ]


def test_each_recipient_that_was_let_in_is_named(room: Room) -> None:
    for name in ("safe", "mallory"):
        room.ask(OWNER, Verb.ADMIT, "", "", Secret(RecoveryKey.new().recipient(name).line().encode()))
    assert [note["detail"]["about"] for note in room.notes()] == ["safe", "mallory"]


@pytest.mark.parametrize(
    ("verb", "namespace", "varied"),
    [
        (Verb.GET, "closed", "name"),  # refused
        (Verb.GET, "open", "name"),  # allowed, and there is none
        (Verb.REMOVE, "mine", "name"),
        (Verb.ROTATE, "closed", "name"),
        (Verb.ROTATE, "closed", "detail"),
    ],
)
def test_who_varies_what_he_asks_for_is_noted_for_so_many(room: Room, verb: Verb, namespace: str, varied: str) -> None:
    for number in range(500):
        words = (f"{namespace}/{number}", "secret") if varied == "name" else (f"{namespace}/one", f"{number}")
        assert isinstance(room.ask(READER, verb, *words), VaultError)
    notes = room.notes()
    assert len(notes) == MAX_SUBJECTS + 2
    assert (notes[-1]["subject"], notes[-1]["detail"]["repeated"]) == ("others", 500 - MAX_SUBJECTS - 1)


def test_the_owner_is_told_apart_always(room: Room) -> None:
    for number in range(100):
        room.ask(OWNER, Verb.GET, f"open/{number}")
    assert {note["subject"] for note in room.notes()} == {f"open/{number}" for number in range(100)}


def test_whoever_reaches_for_the_vaults_own_is_refused_and_noted(room: Room) -> None:
    assert isinstance(room.ask(READER, Verb.PUT, "millwright/audit", "", Secret(b"x")), RefusedError)
    assert isinstance(room.ask(OWNER, Verb.PUT, "millwright/audit", "", Secret(b"x")), VaultError)
    assert [(note["subject"], note["outcome"]) for note in room.notes()] == [("millwright/audit", "refused")]


def test_who_floods_the_bus_and_the_log_hides_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(MemoryBus(MemoryBroker()), lambda: 10**18)
    for number in range(1000):
        mirror.note("uid 1000", "vault.get", f"guess/{number}", "refused")
    mirror.note("uid 1001", "vault.get", "mqtt/plant", "refused")
    assert len(caplog.records) == MIRRORED + 1
    assert "uid 1001" in caplog.messages[-1]
