"""Backups: who reads one, where it may be restored, and what a restore says that it did."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BindingError, MillwrightError, RefusedError, SealError, VaultError
from appliance.vault import backup, layout
from appliance.vault.backup import Report, Ticket
from appliance.vault.recovery import RecoveryKey
from appliance.vault.secret import Secret
from tests.vaults import Box, Place, Tally, held

CONTENT = {"mqtt/plant": b"pump", "mqtt/office": b"desk", "tls/broker/key": b"k" * 300}
HOUR = 3_600_000_000_000
OFFICE = RecoveryKey(Secret(bytes(32)))
THERE = "there"


class Source(Place):
    """A box named `here`, its backup, and another box to restore it on."""

    def __init__(self) -> None:
        super().__init__()
        with self.make(CONTENT, "aes-256-gcm", OFFICE.recipient("office")) as vault:
            vault.put("mqtt/plant", Secret(b"pump, newer"))
            self.data = vault.backup()
            self.id = vault.status().vault
        self.there = Place()

    def ticket(self, key: RecoveryKey | None = None, box: str = THERE) -> bytes:
        now = self.now()
        return backup.ticket(self.data, key or self.key, box, now, now + HOUR)

    def restore(
        self, ticket: bytes | None, box: str = THERE, key: RecoveryKey | None = None, **options: bool
    ) -> Report:
        there = self.there
        return backup.restore(
            there.folder,
            self.data,
            key or self.key,
            ticket,
            box,
            there.box,
            there.tally,
            self.now,
            disk=there.disk,
            **options,
        )


EXPECTED = {**CONTENT, "mqtt/plant": b"pump, newer"}


@pytest.fixture
def source() -> Source:
    return Source()


def test_what_a_backup_tells_without_a_key(source: Source) -> None:
    facts = backup.inspect(source.data)
    assert (facts.vault, facts.box, facts.suite, facts.secrets) == (source.id, "here", "aes-256-gcm", 3)
    assert facts.recipients == ("recovery", "office")
    assert facts.generation == 5
    for content in ("pump", "desk", "mqtt", "plant"):
        assert content.encode() not in source.data


def test_the_box_itself_does_not_read_it(source: Source) -> None:
    """Its key is another one, and no backend is bound; nor does it pass for a vault."""
    assert layout.survey((source.data,)).roots[0].head.bindings == ()
    source.lay(source.data, source.data)
    with pytest.raises(VaultError, match="is a backup"):
        source.open()
    with pytest.raises(VaultError, match="is a backup"):
        source.recover(Box())


def test_restored_on_the_box_it_is_of(source: Source) -> None:
    report = source.restore(None, "here")
    assert (report.vault, report.secrets, report.allowed_by) == (source.id, 3, "")
    with source.there.open() as vault:
        assert held(vault) == EXPECTED
        assert [one.version for one in vault.entries()] == [1, 2, 1]
        assert vault.status().bindings == ("board", "recipient recovery", "recipient office")
        assert vault.status().anchored


@pytest.mark.parametrize("signer", ["recovery", "office"])
@pytest.mark.parametrize("reader", ["recovery", "office"])
def test_restored_on_another_box_with_a_ticket(source: Source, signer: str, reader: str) -> None:
    """Who reads it need not be who allows it. Afterwards it is another vault."""
    keys = {"recovery": source.key, "office": OFFICE}
    report = source.restore(source.ticket(keys[signer]), key=keys[reader])
    assert report.allowed_by == signer
    assert report.vault != source.id == report.backup.vault
    assert any("compare what it holds" in words for words in report.did) == (reader == "office")
    with source.there.open() as vault:
        assert held(vault) == EXPECTED
        assert [one.version for one in vault.entries()] == [1, 2, 1]
        theirs = vault._opened()
    with source.open() as vault:
        ours = vault._opened()
    assert {one.key.reveal() for one in ours.namespaces.values()}.isdisjoint(
        one.key.reveal() for one in theirs.namespaces.values()
    )
    assert set(ours.records()).isdisjoint(theirs.records())
    for key in keys.values():
        with source.there.recover(source.there.box, key) as vault:
            assert held(vault) == EXPECTED


def test_what_it_says_that_it_did(source: Source) -> None:
    report = source.restore(source.ticket())
    assert report.did == (
        "opened a backup of 2026-09-21 14:13 UTC, generation 5, made on box 'here'",
        "restored 3 secrets under a new key, bound to board",
        "made it another vault, for box 'there': no key of the first one opens it",
    )
    assert (report.missing, report.kept) == ((), ())


def expired(source: Source) -> bytes:
    ticket = source.ticket()
    source.now.at += 2 * HOUR
    return ticket


def other_backup(source: Source) -> bytes:
    with source.open() as vault:
        data = vault.backup()
    return backup.ticket(data, source.key, THERE, source.now(), source.now() + HOUR)


def by_a_stranger(source: Source) -> bytes:
    """Who names himself, and one who names the office."""
    stranger = RecoveryKey.new()
    return signed(source, stranger, stranger.recipient().signer)


def signed(source: Source, key: RecoveryKey, signer: bytes) -> bytes:
    vault = bytes.fromhex(source.id)
    body = Ticket(vault, hashlib.sha256(source.data).digest(), THERE, source.now(), source.now() + HOUR, signer).body()
    return cbor2.dumps([body, key.sign(body)])


REFUSED: dict[str, tuple[Callable[[Source], bytes | None], str]] = {
    "none": (lambda source: None, "the backup is of box 'here', this is 'there': that needs a ticket"),
    "expired": (expired, "was valid until 2026-09-21"),
    "for another box": (lambda source: source.ticket(box="elsewhere"), "is for box 'elsewhere', and this is 'there'"),
    "for another backup": (other_backup, "is for another backup"),
    "by a stranger": (by_a_stranger, "signed by none of"),
    "in another's name": (
        lambda source: signed(source, RecoveryKey.new(), OFFICE.recipient().signer),
        "signed by none",
    ),
    "empty": (lambda source: b"", "cannot be read"),
    "cut": (lambda source: source.ticket()[:-1], "cannot be read"),
    "too long": (lambda source: source.ticket() + b"\0", "cannot be read"),
    "the backup itself": (lambda source: source.data, "cannot be read"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_no_restore_elsewhere_without_a_valid_ticket(source: Source, name: str) -> None:
    make, words = REFUSED[name]
    ticket = make(source)
    with pytest.raises(RefusedError, match=words) as caught:
        source.restore(ticket)
    assert "ticket" in caught.value.remedy
    assert source.there.copies() == [None, None]


@given(st.data())
def test_a_ticket_with_a_byte_changed(data: st.DataObject) -> None:
    ticket = SOURCE.ticket()
    at = data.draw(st.integers(0, len(ticket) - 1))
    wrong = ticket[:at] + bytes((ticket[at] ^ data.draw(st.integers(1, 255)),)) + ticket[at + 1 :]
    with pytest.raises(RefusedError):
        SOURCE.restore(wrong)


SOURCE = Source()


def test_a_box_without_a_name_is_another_box(source: Source) -> None:
    with pytest.raises(RefusedError):
        source.restore(None, "")


def test_a_clock_that_stands_at_the_beginning_does_not_refuse_a_ticket(source: Source) -> None:
    ticket = source.ticket()
    source.now.at = 0
    assert source.restore(ticket).secrets == 3


def test_tickets_that_would_never_be_valid(source: Source) -> None:
    now = source.now()
    for box, until in (("", now + HOUR), ("b" * 129, now + HOUR), (THERE, now)):
        with pytest.raises(VaultError, match="names a box, and ends later"):
            backup.ticket(source.data, source.key, box, now, until)
    with pytest.raises(SealError, match="none of the backup's"):
        backup.ticket(source.data, RecoveryKey.new(), THERE, now, now + HOUR)


def test_another_recovery_key_reads_nothing(source: Source) -> None:
    with pytest.raises(SealError, match="none of the vault's"):
        source.restore(source.ticket(), key=RecoveryKey.new())
    assert source.there.copies() == [None, None]


def test_a_vault_that_is_there_is_not_replaced_unless_that_is_said(source: Source) -> None:
    source.there.make({"old/one": b"old"}).close()
    before = source.there.copies()
    with pytest.raises(VaultError, match="there is a vault"):
        source.restore(source.ticket())
    assert source.there.copies() == before
    report = source.restore(source.ticket(), replacing=True)
    assert [path.name for path in report.kept] == ["vault.1.replaced", "vault.2.replaced"]
    assert [source.there.disk.read(path, 1 << 20) for path in report.kept] == before
    with source.there.open() as vault:
        assert held(vault) == EXPECTED


def test_a_board_that_binds_nothing_leaves_things_as_they_are(source: Source) -> None:
    source.there.box.trouble = "out of order"
    with pytest.raises(BindingError, match="out of order"):
        source.restore(source.ticket())
    assert source.there.copies() == [None, None]
    source.there.box.trouble, source.there.tally = "", Tally(4)
    assert source.restore(source.ticket()).secrets == 3


def test_a_secret_that_was_damaged_is_named(source: Source) -> None:
    survey = layout.survey((source.data,))
    lost = next(iter(survey.records.values()))
    source.data = layout.assemble(survey.roots[0], [one for one in survey.records.values() if one != lost])
    report = source.restore(source.ticket())
    assert (report.secrets, len(report.missing)) == (2, 1)
    with source.there.open() as vault:
        assert held(vault) == {name: EXPECTED[name] for name in EXPECTED if name not in report.missing}
        assert vault.status().damaged == ()


def test_a_header_that_was_changed(source: Source) -> None:
    """Were the box's name not under the MAC, nobody would need a ticket."""
    survey = layout.survey((source.data,))
    root = survey.roots[0]
    body = layout.body_of(replace(root.head, box=THERE), root.index)
    source.data = layout.assemble(replace(root, body=body), survey.records.values())
    with pytest.raises(SealError, match="altered"):
        source.restore(None)
    assert source.there.copies() == [None, None]


@pytest.mark.parametrize("data", [b"", b"x" * 1000, b"\x9bMWV"])
def test_what_is_no_backup(source: Source, data: bytes) -> None:
    for call in (lambda: backup.inspect(data), lambda: backup.ticket(data, source.key, THERE, 0, HOUR)):
        with pytest.raises(SealError, match="no backup"):
            call()
    vault = source.copies()[0]
    assert vault is not None
    with pytest.raises(SealError, match="no backup"):
        backup.inspect(vault)


def test_damaged_backups_give_what_they_hold_or_are_refused(source: Source) -> None:
    dice = random.Random(1)
    sound, restored = source.data, 0
    for _ in range(300):
        at = dice.randrange(len(sound))
        source.data = sound[:at] + dice.randbytes(dice.randrange(8)) + sound[at + dice.randrange(8) :]
        try:
            report = source.restore(None, "here", replacing=True)
        except MillwrightError:
            continue
        restored += 1
        with source.there.open() as vault:
            assert held(vault) == {name: EXPECTED[name] for name in EXPECTED if name not in report.missing}
    assert restored > 250
