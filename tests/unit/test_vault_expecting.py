"""What a vault is told before and after another release of the system: a backend that remembers stands for a TPM."""

from collections.abc import Mapping

import pytest

from appliance.errors import VaultError
from appliance.vault import expecting
from appliance.vault.client import Asking
from appliance.vault.desk import Desk
from appliance.vault.locked import Locked
from appliance.vault.opening import Unwritten
from appliance.vault.policy import Peer, Policy
from appliance.vault.protocol import Request, Verb
from appliance.vault.secret import Secret
from tests.vaults import Box

OLD, NEW, SEVEN = "11" * 32, "22" * 32, b"\7" * 32
RUNNING = {"2": "00" * 32, "3": OLD}
COMING = {"2": "33" * 32, "3": NEW}


class Measuring(Box):
    def __init__(self, state: dict[int, bytes]) -> None:
        super().__init__("tpm")
        self.now, self.slots = state, [state]

    def state(self) -> Mapping[int, bytes]:
        return self.now

    def allow(self, old: Mapping[int, bytes], new: Mapping[int, bytes]) -> None:
        self.slots = [dict(old), dict(new)]

    def commit(self, new: Mapping[int, bytes]) -> None:
        self.slots = [dict(new)]


def state(eleven: str) -> dict[int, bytes]:
    return {7: SEVEN, 11: bytes.fromhex(eleven)}


def test_both_releases_open_until_the_new_one_is_settled() -> None:
    backend = Measuring(state(OLD))
    assert expecting.expect(backend, RUNNING, COMING) == "3"
    assert backend.slots == [state(OLD), state(NEW)]
    backend.now = state(NEW)
    expecting.settled(backend)
    assert backend.slots == [state(NEW)]


def test_a_question_changes_nothing() -> None:
    backend = Measuring(state(OLD))
    assert expecting.expect(backend, RUNNING, {}) == "3"
    assert backend.slots == [state(OLD)]


@pytest.mark.parametrize("backend", [None, Box(), Measuring({7: SEVEN})], ids=["none", "fingerprint", "unsigned"])
def test_a_vault_that_does_not_ask_for_the_release(backend: Box | None) -> None:
    assert expecting.expect(backend, RUNNING, COMING) == ""
    expecting.settled(backend)


@pytest.mark.parametrize(
    ("running", "coming"),
    [({"3": NEW}, COMING), ({}, COMING), (RUNNING, {"2": NEW}), (RUNNING, {"3": "x"}), (RUNNING, {"3": "22"})],
)
def test_what_would_lock_the_vault_is_refused(running: dict[str, str], coming: dict[str, str]) -> None:
    backend = Measuring(state(OLD))
    with pytest.raises(VaultError) as caught:
        expecting.expect(backend, running, coming)
    assert caught.value.remedy
    assert backend.slots == [state(OLD)]


class Told:
    """A Custody that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def expect(self, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
        self.said.append((running, coming))
        return "3"

    def settled(self) -> None:
        self.said.append("settled")


def test_it_goes_through_the_desk_for_those_who_manage() -> None:
    told = Told()
    desk = Desk(told, lambda: Policy(0), Unwritten())  # type: ignore[arg-type]  # as much of a custody as is asked for
    asking = Asking(lambda request: desk.answer(Peer(0, pid=1), request))
    assert asking.expect(RUNNING, COMING) == "3"
    asking.settled()
    assert told.said == [(RUNNING, COMING), "settled"]
    for request in (Request(Verb.EXPECT), Request(Verb.SETTLED)):
        with pytest.raises(VaultError, match="may not manage"):
            desk.answer(Peer(4711, pid=1), request)
    with pytest.raises(VaultError, match="no values"):
        desk.answer(Peer(0, pid=1), Request(Verb.EXPECT, content=Secret(b"nonsense")))


def test_a_locked_vault_says_why() -> None:
    locked = Locked(VaultError("it does not open", "Recover it."))
    for act in (lambda: locked.expect(RUNNING, COMING), locked.settled):
        with pytest.raises(VaultError, match="does not open"):
            act()
