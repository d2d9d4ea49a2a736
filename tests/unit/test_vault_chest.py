"""The opened vault: what it keeps, what it refuses, and what it says when something is not as it was."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.errors import BindingError, SealError, StoreError, VaultError
from appliance.vault import chest, keyring, layout, recovery, strongbox
from appliance.vault.chest import Chest
from appliance.vault.port import MAX_SECRET_BYTES, MAX_SECRETS
from appliance.vault.recovery import RecoveryKey
from appliance.vault.secret import Secret
from tests.vaults import START, Box, Clock, Place, PowerCut, Tally, held

CONTENT = {"mqtt/plant": b"pump", "mqtt/office": b"desk", "tls/broker/key": b"k" * 300}


@pytest.fixture
def place() -> Place:
    return Place()


# ---- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["aes-256-gcm", "sm4-gcm"])
def test_what_was_put_is_there_after_reopening(suite: str) -> None:
    place = Place()
    place.make(CONTENT, suite).close()
    with place.open() as vault:
        assert held(vault) == CONTENT
        status = vault.status()
    assert (status.suite, status.backend, status.anchored, status.secrets) == (suite, "board", True, 3)
    assert status.bindings == ("board", "recipient recovery")
    assert (status.damaged, status.warnings) == ((), ())


def test_on_a_real_disk(tmp_path: Path) -> None:
    """Nobody else may read the files; nothing stands in them in the clear."""
    folder, box, now = tmp_path / "state" / "vault", Box(), Clock()
    vault, _ = chest.create(folder, box, "aes-256-gcm", (), None, now)
    vault.put("mqtt/a-name-of-length", Secret(b"a secret of some length"))
    with pytest.raises(StoreError, match="another Millwright has the vault open"):
        chest.open(folder, [box], None, now)
    vault.close()
    with chest.open(folder, [box], None, now) as again:
        assert again.get("mqtt/a-name-of-length").reveal() == b"a secret of some length"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in strongbox.COPIES:
        raw = (folder / name).read_bytes()
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert b"a secret of" not in raw
        assert b"a-name-of" not in raw


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="there is no vault"):
        chest.open(tmp_path / "none", [Box()], None, Clock())
    assert not (tmp_path / "none").exists()
    assert not chest.exists(tmp_path / "none")


def test_there_is_one_already(place: Place) -> None:
    place.make(CONTENT).close()
    before = place.copies()
    with pytest.raises(VaultError, match="there is a vault"):
        place.make()
    assert place.copies() == before


def test_another_box_does_not_open_it(place: Place) -> None:
    place.make(CONTENT).close()
    before = place.copies()
    with pytest.raises(BindingError, match="board: this is another board") as caught:
        place.open(Box())
    assert "recovery key" in caught.value.remedy
    with pytest.raises(BindingError, match="bound to board, and this box offers tpm"):
        place.open(Box("tpm"))
    assert place.copies() == before


def test_a_weaker_backend_is_never_used_silently(place: Place) -> None:
    tpm, board = Box("tpm", 30), place.box
    with place.make(CONTENT) as vault:
        vault.bind(tpm)
    with place.open(tpm, board) as vault:
        assert (vault.status().backend, vault.status().warnings) == ("tpm", ())
    tpm.trouble = "register 7 moved"
    with place.open(tpm, board) as vault:
        assert vault.status().backend == "board"
        assert vault.status().warnings == ("opened with board, because tpm did not: register 7 moved",)
    with place.open(Box("enclave", 40), board) as vault:
        assert vault.status().warnings == ("opened with board; enclave is stronger and not bound",)


def test_a_binding_is_made_anew_where_the_backend_asks_for_it(place: Place) -> None:
    place.make(CONTENT).close()
    place.box.reseal = True
    with place.open() as vault:
        assert vault.status().warnings == ("a part was replaced",)
        generation = vault.status().generation
    place.box.reseal = False
    with place.open() as vault:
        assert (held(vault), vault.status().warnings) == (CONTENT, ())
        assert vault.status().generation == generation
    assert generation == len(CONTENT) + 2


def test_closed(place: Place) -> None:
    vault = place.make(CONTENT)
    vault.close()
    vault.close()
    for call in (vault.status, vault.entries, lambda: vault.get("mqtt/plant"), vault.backup):
        with pytest.raises(VaultError, match="closed"):
            call()


# ---- keeping --------------------------------------------------------------------------------------------------------


def test_versions_and_entries(place: Place) -> None:
    vault = place.make(CONTENT)
    again = vault.put("mqtt/plant", Secret(b"new"))
    assert (again.version, again.size) == (2, 3)
    assert again.at > START
    assert [one.name for one in vault.entries()] == sorted(CONTENT)
    assert [one.name for one in vault.entries("mqtt/")] == ["mqtt/office", "mqtt/plant"]
    vault.remove("mqtt/plant")
    with pytest.raises(VaultError, match="no secret 'mqtt/plant'"):
        vault.get("mqtt/plant")
    assert vault.put("mqtt/plant", Secret(b"")).version == 1
    assert vault.get("mqtt/plant").reveal() == b""


@pytest.mark.parametrize(
    "name", ["", "plant", "mqtt/", "/plant", "MQTT/plant", "a/b/c/d/e", "mqtt/pl ant", "mqtt/plant\n"]
)
def test_names_that_are_none(place: Place, name: str) -> None:
    vault = place.make(CONTENT)
    calls: list[Callable[[], object]] = [
        lambda: vault.put(name, Secret(b"")),
        lambda: vault.get(name),
        lambda: vault.remove(name),
        lambda: vault.rotate("secret", name),
    ]
    for call in calls:
        with pytest.raises(VaultError, match="cannot name a secret"):
            call()
    assert held(vault) == CONTENT


def test_limits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = place.make({"big/one": b"x" * MAX_SECRET_BYTES})
    with pytest.raises(VaultError, match="big/two"):
        vault.put("big/two", Secret(b"x" * (MAX_SECRET_BYTES + 1)))
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", 100_000)
    with pytest.raises(VaultError, match="more than 100000"):
        vault.put("big/two", Secret(b"x" * MAX_SECRET_BYTES))
    assert [one.name for one in vault.entries()] == ["big/one"]
    assert vault.put("small/one", Secret(b"")).version == 1


def test_no_more_than_so_many(place: Place) -> None:
    """And the file of so many, with the longest names, is one that can be read."""
    ring = keyring.new(place.make()._opened().suite, RecoveryKey.new(), (), "", START)
    name = "/".join(["n" * 64] * 3) + "/" + "x" * 58
    for number in range(MAX_SECRETS):
        ring = keyring.put(ring, f"{name}{number:06}", Secret(b""), START) if not number else _more(ring, name, number)
    with pytest.raises(VaultError, match="one more than"):
        keyring.put(ring, "one/more", Secret(b""), START)
    assert keyring.put(ring, f"{name}000000", Secret(b"new"), START).items[f"{name}000000"].entry.version == 2
    ring, root = keyring.seal(ring, 1, None, START)
    survey = layout.survey((layout.assemble(root, ring.records()),))
    assert len(keyring.unlock(survey.roots[0], ring.key, survey.records).items) == MAX_SECRETS


def _more(ring: keyring.Keyring, name: str, number: int) -> keyring.Keyring:
    """As a put does, without a new mapping each time."""
    one = keyring.put(keyring.replace(ring, items={}), f"{name}{number:06}", Secret(b""), START)
    assert isinstance(ring.items, dict)
    ring.items.update(one.items)
    return ring


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_every_layer_is_renewed(place: Place) -> None:
    vault = place.make(CONTENT)
    before = vault._opened()
    vault.rotate("binding")
    assert vault._opened().head.bindings[0].blob != before.head.bindings[0].blob
    assert vault._opened().key is before.key
    vault.rotate("secret", "mqtt/plant")
    assert vault._opened().items["mqtt/plant"].record != before.items["mqtt/plant"].record
    assert vault._opened().items["mqtt/office"].record == before.items["mqtt/office"].record
    vault.rotate("namespace", "mqtt")
    assert vault._opened().namespaces["mqtt"].epoch == 2
    assert vault._opened().items["mqtt/office"].record != before.items["mqtt/office"].record
    assert vault._opened().items["tls/broker/key"].record == before.items["tls/broker/key"].record
    vault.rotate("key")
    assert vault._opened().head.epoch == 2
    assert vault._opened().key.reveal() != before.key.reveal()
    assert [one.version for one in vault.entries()] == [1, 1, 1]
    vault.close()
    with place.open() as again:
        assert held(again) == CONTENT


def test_what_cannot_be_renewed_is_named(place: Place) -> None:
    with place.make(CONTENT) as vault:
        vault.bind(Box("tpm", 30))
    with place.open() as vault:
        for change in (lambda: vault.rotate("key"), vault.renew_recovery, lambda: vault.unbind("board")):
            with pytest.raises(BindingError, match="tpm is bound and not at hand"):
                change()
        with pytest.raises(BindingError, match="no binding 'tpm' can be made"):
            vault.rotate("binding", "tpm")
        with pytest.raises(VaultError, match="no namespace 'serial'"):
            vault.rotate("namespace", "serial")
        with pytest.raises(VaultError, match="no secret 'a/b'"):
            vault.rotate("secret", "a/b")
        vault.rotate("binding")
        assert held(vault) == CONTENT


def test_a_backend_that_binds_no_more_changes_nothing(place: Place) -> None:
    vault = place.make(CONTENT)
    before = place.copies()
    place.box.trouble = "out of order"
    for layer in ("binding", "key"):
        with pytest.raises(BindingError, match="out of order"):
            vault.rotate(layer)
    assert (place.copies(), held(vault)) == (before, CONTENT)


def test_binding_to_a_second_backend_and_away_from_the_first(place: Place) -> None:
    tpm = Box("tpm", 30)
    with place.make(CONTENT) as vault:
        with pytest.raises(VaultError, match="all that is"):
            vault.unbind("board")
        vault.bind(tpm)
        vault.bind(tpm)
        vault.unbind("board")
        assert vault.status().bindings == ("tpm", "recipient recovery")
    with pytest.raises(BindingError):
        place.open()
    with place.open(tpm) as vault:
        assert held(vault) == CONTENT


def test_a_blob_without_bounds_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = place.make(CONTENT)
    monkeypatch.setattr(place.box, "seal", lambda key: bytes(1 << 20))
    with pytest.raises(BindingError, match="1048576 bytes"):
        vault.rotate("binding")
    assert held(vault) == CONTENT


# ---- recovery and escrow --------------------------------------------------------------------------------------------


def test_recovered_on_a_new_board(place: Place) -> None:
    """The old board opens it no more: its key is another one now."""
    place.make(CONTENT).close()
    new, old = Box(), place.box
    place.tally = Tally(2)
    with place.recover(new) as vault:
        assert held(vault) == CONTENT
        assert vault.status().backend == "recovery"
        assert vault.status().warnings == ("the file says 11, the counter 2: whether it is the latest is not known",)
    with place.open(new) as vault:
        assert (held(vault), vault.status().warnings) == (CONTENT, ())
    with pytest.raises(BindingError, match="another board"):
        place.open(old)
    with place.recover(Box()) as vault:
        assert held(vault) == CONTENT


def test_another_vaults_recovery_key(place: Place) -> None:
    place.make(CONTENT).close()
    with pytest.raises(SealError, match="none of the vault's") as caught:
        place.recover(Box(), RecoveryKey.new())
    assert "keys of: recovery" in caught.value.remedy
    with place.open() as vault:
        assert held(vault) == CONTENT


@pytest.mark.parametrize("kind", ["x25519", "mlkem768-x25519"])
def test_recipients_come_and_go(place: Place, kind: recovery.hpke.Kind) -> None:
    office, depot = RecoveryKey.new(), RecoveryKey.new()
    with place.make(CONTENT, "aes-256-gcm", office.recipient("office", kind)) as vault:
        vault.add_recipient(depot.recipient("depot", kind).line() + "\n")
        assert recovery.read_recipients("\n".join(vault.recipients()))[1:] == (
            office.recipient("office", kind),
            depot.recipient("depot", kind),
        )
        vault.remove_recipient("office")
        with pytest.raises(VaultError, match="no recipient 'office'"):
            vault.remove_recipient("office")
        with pytest.raises(VaultError, match="cannot be taken away"):
            vault.remove_recipient("recovery")
        with pytest.raises(VaultError, match="same name or the same key"):
            vault.add_recipient(depot.recipient("depot").line())
        with pytest.raises(VaultError, match="same name or the same key"):
            vault.add_recipient(place.key.recipient("twin").line())
    with pytest.raises(SealError, match="none of the vault's"):
        place.recover(Box(), office)
    with place.recover(Box(), depot) as vault:
        assert held(vault) == CONTENT
        assert vault.status().warnings[0].startswith("opened with the key of 'depot', which cannot tell who wrote")


def test_the_recovery_key_is_renewed(place: Place) -> None:
    with place.make(CONTENT) as vault:
        printed = vault.renew_recovery().reveal().decode()
    with pytest.raises(SealError):
        place.recover(Box())
    with place.recover(Box(), RecoveryKey.read(printed)) as vault:
        assert held(vault) == CONTENT


def test_a_vault_that_somebody_else_made_for_our_recovery_key(place: Place) -> None:
    """Its public half stands in every file, so anybody can wrap a key of his to it. He lacks the voucher."""
    place.make(CONTENT).close()
    public = place.key.recipient()
    forged = Place()

    class Forger(RecoveryKey):
        def recipient(self, name: str = "recovery", kind: recovery.hpke.Kind = "x25519") -> recovery.Recipient:
            return public

    ring = keyring.new(keyring.suites.AES, Forger.new(), (), "", START)
    forged_chest, _ = chest.establish(Path("/vault"), ring, forged.box, None, forged.now, disk=forged.disk)
    forged_chest.close()
    place.lay(*forged.copies())
    with pytest.raises(SealError, match="another key"):
        place.recover(Box())


# ---- the counter ----------------------------------------------------------------------------------------------------


def test_an_older_file_is_refused(place: Place) -> None:
    vault = place.make(CONTENT)
    older = place.copies()
    vault.put("mqtt/plant", Secret(b"newer"))
    vault.put("mqtt/plant", Secret(b"newest"))
    vault.close()
    place.lay(*older)
    with pytest.raises(BindingError, match="older than the latest one: it says 11, the counter 13") as caught:
        place.open()
    assert "--accept-older" in caught.value.remedy
    assert place.copies() == older
    with pytest.raises(BindingError, match="an older file, or another box's"):
        place.recover(place.box)
    assert place.copies() == older
    with place.recover(place.box, accept_older=True) as vault:
        assert held(vault) == CONTENT
    with place.open() as vault:
        assert vault.status().warnings == ()


def test_an_older_copy_beside_the_latest_is_replaced(place: Place) -> None:
    vault = place.make(CONTENT)
    older = place.copies()[0]
    vault.put("mqtt/plant", Secret(b"newer"))
    latest = place.copies()
    vault.close()
    for lay in ((older, latest[1]), (latest[0], older), (None, latest[1]), (latest[0], None)):
        place.lay(*lay)
        with place.open() as vault:
            assert held(vault) == {**CONTENT, "mqtt/plant": b"newer"}
            assert place.copies() == latest


def test_a_counter_that_is_another_one_or_away(place: Place) -> None:
    place.make(CONTENT).close()
    place.tally, counter = Tally(3), place.tally
    with pytest.raises(BindingError, match="it is another counter"):
        place.open()
    place.tally = None
    with pytest.raises(BindingError, match="does not offer"):
        place.open()
    with place.recover(place.box) as vault:
        assert vault.status().warnings[0].startswith("the file was anchored in a counter, which is not here")
        assert not vault.status().anchored
    place.tally = counter
    with place.open() as vault:
        assert vault.status().anchored


def test_a_counter_that_fails(place: Place) -> None:
    vault = place.make(CONTENT)
    before = place.copies()
    assert place.tally is not None
    place.tally.trouble = "the TPM is busy"
    with pytest.raises(BindingError, match="busy"):
        vault.put("mqtt/plant", Secret(b"newer"))
    assert (place.copies(), held(vault)) == (before, CONTENT)
    vault.close()
    with pytest.raises(BindingError, match="busy"):
        place.open()


def test_a_counter_that_is_read_but_not_advanced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is kept, said, and completed by the next write."""
    vault = place.make(CONTENT)
    tally = place.tally
    assert tally is not None

    def worn() -> int:
        raise BindingError("the TPM refuses to write")

    monkeypatch.setattr(tally, "advance", worn)
    vault.put("mqtt/plant", Secret(b"newer"))
    vault.put("mqtt/plant", Secret(b"newest"))
    assert vault.status().warnings == ("the counter was not advanced: the TPM refuses to write",)
    vault.close()
    monkeypatch.undo()
    with place.open() as vault:
        assert vault.get("mqtt/plant").reveal() == b"newest"
        assert vault.status().warnings == ()
    with place.open() as vault:
        vault.put("mqtt/plant", Secret(b"last"))
        assert vault.status().warnings == ()


def test_a_counter_that_somebody_else_advances(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In between reading and advancing it: the file is written once more, or it would be an older one."""
    vault = place.make(CONTENT)
    tally = place.tally
    assert tally is not None
    advance = tally.advance

    def jostled() -> int:
        monkeypatch.undo()
        advance()
        return advance()

    monkeypatch.setattr(tally, "advance", jostled)
    vault.put("mqtt/plant", Secret(b"newer"))
    vault.close()
    with place.open() as vault:
        assert vault.get("mqtt/plant").reveal() == b"newer"


# ---- the disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(place: Place) -> None:
    vault = place.make(CONTENT)
    before = place.copies()
    place.disk.full = True
    changes: list[Callable[[], object]] = [
        lambda: vault.put("mqtt/plant", Secret(b"newer")),
        lambda: vault.remove("mqtt/plant"),
        lambda: vault.rotate("key"),
        vault.renew_recovery,
    ]
    for change in changes:
        with pytest.raises(StoreError, match="No space left") as caught:
            change()
        assert "Make room" in caught.value.remedy
        assert (place.copies(), held(vault)) == (before, CONTENT)
    place.disk.full = False
    vault.put("mqtt/plant", Secret(b"newer"))
    vault.close()
    with place.open() as vault:
        assert held(vault) == {**CONTENT, "mqtt/plant": b"newer"}


def test_a_disk_that_is_read_only_is_read(place: Place) -> None:
    place.make(CONTENT).close()
    first, second = place.copies()
    assert first is not None
    place.lay(first[:-7], second)
    place.disk.full, place.box.reseal = True, True
    with place.open() as vault:
        assert held(vault) == CONTENT
        assert "opened, but the vault in /vault cannot be written" in vault.status().warnings[-1]
        assert place.copies() == [first[:-7], second]
        with pytest.raises(StoreError):
            vault.put("mqtt/plant", Secret(b"newer"))


@pytest.mark.parametrize("step", ["sync", "rename", "sync_folder"])
def test_a_disk_that_fails_in_one_step(place: Place, step: str) -> None:
    """Whether it took effect is open; that there is one state or the other is not."""
    vault = place.make(CONTENT)
    place.disk.failing = {step}
    with pytest.raises(StoreError, match="Input/output error"):
        vault.put("mqtt/plant", Secret(b"lost"))
    assert held(vault) == CONTENT
    place.disk.failing = set()
    assert vault.put("mqtt/plant", Secret(b"newer")).version == 2
    vault.close()
    with place.open() as vault:
        assert held(vault) == {**CONTENT, "mqtt/plant": b"newer"}


def test_where_only_the_second_copy_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = place.make(CONTENT)
    rename = place.disk.rename

    def stuck(path: Path, target: Path) -> None:
        if target.name == "vault.2":
            raise OSError(errno.EIO, "Input/output error")
        rename(path, target)

    monkeypatch.setattr(place.disk, "rename", stuck)
    vault.put("mqtt/plant", Secret(b"newer"))
    assert vault.status().warnings == ("the second copy of the vault cannot be written: Input/output error",)
    monkeypatch.undo()
    vault.rotate("secret", "mqtt/plant")
    assert vault.status().warnings == ()
    vault.close()
    with place.open() as vault:
        assert held(vault) == {**CONTENT, "mqtt/plant": b"newer"}


# ---- threads --------------------------------------------------------------------------------------------------------


def test_readers_while_keys_are_rotated(place: Place) -> None:
    vault = place.make(CONTENT)
    stop, seen, wrong = threading.Event(), [0] * 3, []

    def read(number: int) -> None:
        while not stop.is_set():
            if held(vault) != CONTENT:
                wrong.append(number)
            seen[number] += 1

    def write(number: int) -> None:
        for _ in range(25):
            vault.rotate("key" if number else "namespace", "" if number else "mqtt")

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert (wrong, min(seen) > 0) == ([], True)
    assert vault._opened().head.epoch == 26
    assert vault._opened().namespaces["mqtt"].epoch == 26
    vault.close()
    with place.open() as vault:
        assert held(vault) == CONTENT


# ---- everything, in any order ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a/a", "a/b", "b/a", "b/b/c"])


class Life(RuleBasedStateMachine):
    """Against a dictionary. The power may go in any step of any change: then it is done or not, and nothing else."""

    @initialize(
        suite=st.sampled_from(["aes-256-gcm", "sm4-gcm"]),
        counting=st.booleans(),
        dice=st.randoms(use_true_random=False),
    )
    def begin(self, suite: str, counting: bool, dice: object) -> None:
        self.place = Place(dice, counting=counting)  # type: ignore[arg-type]
        self.office = RecoveryKey.new()
        self.vault: Chest = self.place.make({}, suite, self.office.recipient("office"))
        self.model: dict[str, tuple[bytes, int]] = {}

    def change(self, cut: int, change: Callable[[], object], after: dict[str, tuple[bytes, int]]) -> None:
        self.place.disk.steps, self.place.disk.cut = 0, cut
        try:
            change()
            self.model, self.place.disk.cut = after, 0
        except PowerCut:
            self.place.disk.power_back()
            self.reopen()
            found = self.found()
            assert found in (self.model, after)
            self.model = found

    def reopen(self) -> None:
        self.vault.close()
        self.vault = self.place.open()

    def found(self) -> dict[str, tuple[bytes, int]]:
        return {one.name: (self.vault.get(one.name).reveal(), one.version) for one in self.vault.entries()}

    @rule(name=NAMES, content=st.binary(max_size=80), cut=st.integers(0, 12))
    def put(self, name: str, content: bytes, cut: int) -> None:
        _, version = self.model.get(name, (b"", 0))
        after = {**self.model, name: (content, version + 1)}
        self.change(cut, lambda: self.vault.put(name, Secret(content)), after)

    @rule(name=NAMES, cut=st.integers(0, 12))
    def remove(self, name: str, cut: int) -> None:
        after = {one: held for one, held in self.model.items() if one != name}
        if after == self.model:
            with pytest.raises(VaultError, match="no secret"):
                self.vault.remove(name)
        else:
            self.change(cut, lambda: self.vault.remove(name), after)

    @rule(name=NAMES, layer=st.sampled_from(["binding", "key", "namespace", "secret"]), cut=st.integers(0, 12))
    def rotate(self, name: str, layer: chest.Layer, cut: int) -> None:
        words = {"namespace": name.partition("/")[0], "secret": name}.get(layer, "")
        if words and not any(one.startswith(words) for one in self.model):
            with pytest.raises(VaultError, match="there is no"):
                self.vault.rotate(layer, words)
        else:
            self.change(cut, lambda: self.vault.rotate(layer, words), self.model)

    @rule()
    def open_again(self) -> None:
        generation = self.vault.status().generation
        self.reopen()
        assert (self.vault.status().generation, self.vault.status().warnings) == (generation, ())

    @rule()
    def power_fails_at_rest(self) -> None:
        self.place.disk.power_back()
        self.reopen()

    @rule(by_office=st.booleans(), cut=st.integers(0, 12))
    def move_to_another_board(self, by_office: bool, cut: int) -> None:
        new = Box()
        key = self.office if by_office else None
        self.vault.close()
        self.place.disk.steps, self.place.disk.cut = 0, cut
        try:
            self.vault = self.place.recover(new, key)
        except PowerCut:
            self.place.disk.power_back()
            self.vault = self.place.recover(new, key)
        self.place.disk.cut = 0
        self.place.box = new
        self.reopen()

    @precondition(lambda self: self.model)
    @rule(copy=st.integers(0, 1), data=st.data())
    def one_copy_rots(self, copy: int, data: st.DataObject) -> None:
        copies = self.place.copies()
        content = copies[copy]
        assert content is not None
        at = data.draw(st.integers(0, len(content) - 1))
        copies[copy] = content[:at] + bytes((content[at] ^ data.draw(st.integers(1, 255)),)) + content[at + 1 :]
        self.place.lay(*copies)
        self.reopen()
        assert self.vault.status().warnings == (f"copy {copy + 1} of the vault's file was damaged and is mended",)

    @invariant()
    def all_is_there(self) -> None:
        assert self.found() == self.model
        assert self.vault.status().damaged == ()
        first, second = self.place.copies()
        assert first == second is not None

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.close()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
