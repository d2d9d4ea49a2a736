"""One contract, over the keeper in memory, the opened vault, and the client of a socket in front of each."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import VaultError
from appliance.vault import chest
from appliance.vault.client import Asking, by_socket
from appliance.vault.desk import Desk
from appliance.vault.memory import MemoryKeeper
from appliance.vault.policy import Policy
from appliance.vault.port import MAX_SECRET_BYTES, Custody
from appliance.vault.secret import Secret
from appliance.vault.server import Server, listen
from tests.vaults import Box

NOW = 1_795_000_000_000_000_000
WAIT_S = 30.0


class Deaf:
    """An audit that writes nothing down."""

    def note(self, actor: str, action: str, subject: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        assert not any(isinstance(one, Secret) for one in (actor, action, subject, outcome, detail))

    def tick(self) -> None:
        return None


@contextmanager
def served(custody: Custody, path: Path) -> Iterator[Asking]:
    """A server in a thread of its own."""
    listener, ready, stop = listen(path), threading.Event(), []

    async def serve() -> None:
        server = Server(Desk(custody, lambda: Policy(os.geteuid()), Deaf()), os.geteuid())
        task = asyncio.create_task(server.serve(listener))
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        ready.set()
        await asyncio.wait([task])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(WAIT_S)
    try:
        yield by_socket(path)
    finally:
        stop[0]()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def in_memory(_: Path) -> Custody:
    return MemoryKeeper(lambda: NOW)


def on_disk(folder: Path) -> Custody:
    return chest.create(folder / "vault", Box(), "aes-256-gcm", (), None, lambda: NOW)[0]


KEEPERS: dict[str, Callable[[Path], Custody]] = {"memory": in_memory, "chest": on_disk}


@pytest.fixture(params=[f"{name}{way}" for name in KEEPERS for way in ("", " by socket")])
def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Custody]:
    name, _, by_socket = request.param.partition(" ")
    custody = KEEPERS[name](tmp_path)
    try:
        if by_socket:
            with served(custody, tmp_path / "v.sock") as client:
                yield client
        else:
            yield custody
    finally:
        custody.close()


def test_what_is_put_is_got(keeper: Custody) -> None:
    entry = keeper.put("mqtt/plant", Secret(b"hunter2"))
    assert (entry.name, entry.version, entry.size) == ("mqtt/plant", 1, 7)
    assert keeper.get("mqtt/plant").reveal() == b"hunter2"
    assert list(keeper.entries()) == [entry]


def test_a_new_version_replaces_the_old_one(keeper: Custody) -> None:
    keeper.put("mqtt/plant", Secret(b"one"))
    assert keeper.put("mqtt/plant", Secret(b"two")).version == 2
    assert keeper.get("mqtt/plant").reveal() == b"two"
    assert keeper.status().secrets == 1


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, MAX_SECRET_BYTES])
def test_any_size_up_to_the_largest(keeper: Custody, size: int) -> None:
    content = os.urandom(size)
    keeper.put("sizes/one", Secret(content))
    assert keeper.get("sizes/one").reveal() == content


def test_a_larger_one_is_refused_by_name(keeper: Custody) -> None:
    with pytest.raises(VaultError, match="sizes/one"):
        keeper.put("sizes/one", Secret(bytes(MAX_SECRET_BYTES + 1)))
    assert list(keeper.entries()) == []


def test_one_that_is_not_there_is_named_with_a_remedy(keeper: Custody) -> None:
    for act in (keeper.get, keeper.remove):
        with pytest.raises(VaultError, match="mqtt/none") as caught:
            act("mqtt/none")
        assert caught.value.remedy


def test_what_is_removed_is_gone(keeper: Custody) -> None:
    keeper.put("mqtt/plant", Secret(b"x"))
    keeper.put("mqtt/other", Secret(b"y"))
    keeper.remove("mqtt/plant")
    assert [entry.name for entry in keeper.entries()] == ["mqtt/other"]
    with pytest.raises(VaultError):
        keeper.get("mqtt/plant")


def test_entries_come_by_prefix_in_order(keeper: Custody) -> None:
    for name in ("mqtt/b", "tls/key", "mqtt/a"):
        keeper.put(name, Secret(b"x"))
    assert [entry.name for entry in keeper.entries("mqtt/")] == ["mqtt/a", "mqtt/b"]
    assert [entry.name for entry in keeper.entries()] == ["mqtt/a", "mqtt/b", "tls/key"]
    assert list(keeper.entries("none")) == []


@pytest.mark.parametrize(
    "name", ["", "mqtt", "/mqtt", "mqtt/", "a//b", "A/b", "a/b/c/d/e", "a/" + "x" * 65, "a/ü", "a/b\n"]
)
def test_what_is_no_name_is_refused(keeper: Custody, name: str) -> None:
    for act in (keeper.get, keeper.remove, lambda name: keeper.put(name, Secret(b"x"))):
        with pytest.raises(VaultError) as caught:
            act(name)
        assert caught.value.remedy


def test_every_layer_is_rotated_and_nothing_changes_for_a_reader(keeper: Custody) -> None:
    keeper.put("mqtt/plant", Secret(b"x"))
    before = keeper.status().generation
    keeper.rotate("secret", "mqtt/plant")
    keeper.rotate("namespace", "mqtt")
    keeper.rotate("key")
    keeper.rotate("binding")
    assert keeper.get("mqtt/plant").reveal() == b"x"
    assert keeper.status().generation > before


def test_what_cannot_be_rotated_is_named(keeper: Custody) -> None:
    with pytest.raises(VaultError, match="none"):
        keeper.rotate("namespace", "none")
    with pytest.raises(VaultError, match="mqtt/none"):
        keeper.rotate("secret", "mqtt/none")


def test_the_status_tells_what_there_is(keeper: Custody) -> None:
    keeper.put("mqtt/plant", Secret(b"x"))
    status = keeper.status()
    assert (status.secrets, len(status.vault), status.damaged) == (1, 32, ())
    assert status.bindings
    assert status.promise.does_not


def test_a_backup_holds_no_secret_in_clear(keeper: Custody) -> None:
    keeper.put("mqtt/plant", Secret(b"canary-of-the-backup"))
    made = keeper.backup()
    assert made
    assert b"canary-of-the-backup" not in made


def test_a_vault_that_no_register_binds_expects_any_release(keeper: Custody) -> None:
    assert keeper.expect({"3": "11" * 32}, {"3": "22" * 32}) == ""
    keeper.settled()
    keeper.put("a/b", Secret(b"one"))
    assert keeper.get("a/b").reveal() == b"one"


def test_a_recovery_key_is_renewed(keeper: Custody) -> None:
    printed = keeper.renew_recovery().reveal()
    assert printed
    assert printed.decode().isascii()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "remove"]), st.sampled_from(["a/x", "a/y", "b/x"]), st.binary(max_size=40)),
        max_size=12,
    )
)
def test_it_is_a_dictionary(keeper: Custody, acts: list[tuple[str, str, bytes]]) -> None:
    model: dict[str, bytes] = {entry.name: keeper.get(entry.name).reveal() for entry in keeper.entries()}
    for verb, name, content in acts:
        if verb == "put":
            keeper.put(name, Secret(content))
            model[name] = content
        elif name in model:
            keeper.remove(name)
            del model[name]
    assert {entry.name: keeper.get(entry.name).reveal() for entry in keeper.entries()} == model
