"""The audit chain notices every edit, deletion, swap, truncation and older copy; its journal survives power cuts."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BindingError
from appliance.vault.audit import chain, journal
from appliance.vault.audit.folding import MAX_KEPT, WINDOW_NS
from appliance.vault.audit.journal import CHECKPOINT_ENTRIES, CHECKPOINT_NS, Journal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key()


class Counting:
    """A counter in memory, which satisfies the port."""

    def __init__(self, value: int = 7) -> None:
        self.at = value
        self.answers = True

    def value(self) -> int:
        if not self.answers:
            raise BindingError("the TPM does not answer", "")
        return self.at

    def advance(self) -> int:
        self.at += 1
        return self.at


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def written(folder: Path, clock: Clock, counter: Counting | None, notes: int = 100) -> list[bytes]:
    one = Journal(folder, KEY, counter, clock)
    for number in range(notes):
        one.note("millwright-detect.service", "vault.get", f"mqtt/{number}", "done")
    one.close()
    return list(journal.read(folder))


def put_back(folder: Path, lines: list[bytes]) -> None:
    for path in folder.glob("*.jsonl"):
        path.unlink()
    (folder / "000000000001.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def test_a_whole_journal_verifies(tmp_path: Path, clock: Clock) -> None:
    counter = Counting()
    lines = written(tmp_path, clock, counter)
    report = journal.verify(tmp_path, PUBLIC, counter)
    assert report.flaw is None
    assert report.anchored
    assert report.entries == len(lines) == 101 + report.checkpoints
    assert report.checkpoints == 1 + 101 // CHECKPOINT_ENTRIES
    assert report.unsigned == 0
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))


class TestTampering:
    @pytest.mark.parametrize("place", range(0, 104, 7))
    def test_an_edit_names_its_entry(self, tmp_path: Path, clock: Clock, place: int) -> None:
        counter = Counting()
        lines = written(tmp_path, clock, counter)
        lines[place] = lines[place].replace(b'"outcome":"done"', b'"outcome":"refused"')
        put_back(tmp_path, lines)
        flaw = journal.verify(tmp_path, PUBLIC, counter).flaw
        assert flaw is not None
        assert flaw.seq == place + 1

    def test_a_missing_entry_is_named(self, tmp_path: Path, clock: Clock) -> None:
        lines = written(tmp_path, clock, None)
        del lines[40:43]
        put_back(tmp_path, lines)
        flaw = journal.verify(tmp_path, PUBLIC, None).flaw
        assert flaw is not None
        assert (flaw.seq, flaw.what) == (41, "entries 41 to 43 are missing")

    def test_two_that_changed_places(self, tmp_path: Path, clock: Clock) -> None:
        lines = written(tmp_path, clock, None)
        lines[10], lines[11] = lines[11], lines[10]
        put_back(tmp_path, lines)
        flaw = journal.verify(tmp_path, PUBLIC, None).flaw
        assert flaw is not None
        assert flaw.seq == 11

    def test_a_chain_that_was_computed_anew_lacks_the_signature(self, tmp_path: Path, clock: Clock) -> None:
        forged, tip = [], chain.Tip()
        for line in written(tmp_path, clock, None):
            entry = chain.parse(line)
            subject = "innocent" if entry.subject == "mqtt/3" else entry.subject
            forged.append(chain.add(tip, entry.at, entry.actor, entry.action, subject, entry.outcome, entry.detail))
            tip = chain.after(tip, forged[-1])
        put_back(tmp_path, forged)
        flaw = journal.verify(tmp_path, PUBLIC, None).flaw
        assert flaw is not None
        assert "signature is not of this vault's key" in flaw.what

    def test_a_cut_end_is_known_by_the_counter(self, tmp_path: Path, clock: Clock) -> None:
        counter = Counting()
        lines = written(tmp_path, clock, counter)
        put_back(tmp_path, lines[:50])
        flaw = journal.verify(tmp_path, PUBLIC, counter).flaw
        assert flaw is not None
        assert "cut off" in flaw.what

    def test_an_older_copy_is_known_by_the_counter(self, tmp_path: Path, clock: Clock) -> None:
        counter = Counting()
        older = written(tmp_path, clock, counter)
        written(tmp_path, clock, counter)
        put_back(tmp_path, older)
        assert journal.verify(tmp_path, PUBLIC, counter).flaw is not None

    def test_a_journal_that_was_emptied_is_known_by_the_counter(self, tmp_path: Path, clock: Clock) -> None:
        counter = Counting()
        written(tmp_path, clock, counter)
        put_back(tmp_path, [])
        assert journal.verify(tmp_path, PUBLIC, counter).flaw is not None

    def test_another_vaults_journal(self, tmp_path: Path, clock: Clock) -> None:
        written(tmp_path, clock, None)
        other = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
        assert journal.verify(tmp_path, other, None).flaw is not None

    def test_what_is_no_entry_is_named(self, tmp_path: Path, clock: Clock) -> None:
        lines = written(tmp_path, clock, None)
        lines[4] = b'{"seq": 5'
        put_back(tmp_path, lines)
        flaw = journal.verify(tmp_path, PUBLIC, None).flaw
        assert flaw is not None
        assert flaw.seq == 5
        assert "not an entry" in flaw.what

    def test_a_start_that_was_taken_away(self, tmp_path: Path, clock: Clock) -> None:
        lines = written(tmp_path, clock, None)
        put_back(tmp_path, lines[50:])
        flaw = journal.verify(tmp_path, PUBLIC, None).flaw
        assert flaw is not None
        assert flaw.seq == 50


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_before_the_last_checkpoint_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    lines = _lines_of_thirty(tmp_path_factory)
    assert chain.verify(lines, PUBLIC, counter=8).flaw is None
    content = bytearray(b"\n".join(lines) + b"\n")
    content[place % (len(content) - 1)] ^= 1 << bit
    report = chain.verify(bytes(content).removesuffix(b"\n").split(b"\n"), PUBLIC, counter=8)
    assert report.flaw is not None


_MADE: list[list[bytes]] = []


def _lines_of_thirty(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    if not _MADE:
        _MADE.append(written(tmp_path_factory.mktemp("audit"), Clock(), Counting(7), notes=30))
    return _MADE[0]


class TestPowerCuts:
    def test_a_torn_line_is_cut_off_and_noted(self, tmp_path: Path, clock: Clock) -> None:
        lines = written(tmp_path, clock, None)
        path = next(tmp_path.glob("*.jsonl"))
        path.write_bytes(path.read_bytes() + b'{"seq":105,"at":1')
        again = Journal(tmp_path, KEY, None, clock)
        again.close()
        assert journal.verify(tmp_path, PUBLIC, None).flaw is None
        torn = chain.parse(list(journal.read(tmp_path))[len(lines)])
        assert (torn.action, torn.detail) == ("audit.torn", {"bytes": 17})

    def test_a_cut_between_checkpoint_and_counter_is_completed(self, tmp_path: Path, clock: Clock) -> None:
        counter = Counting()
        written(tmp_path, clock, counter)
        counter.at -= 1  # as if the last advance had not happened
        assert journal.verify(tmp_path, PUBLIC, counter).flaw is None
        before = counter.at
        Journal(tmp_path, KEY, counter, clock)
        assert counter.at == before + 1
        assert journal.verify(tmp_path, PUBLIC, counter).flaw is None

    def test_every_place_of_a_cut(self, tmp_path: Path, clock: Clock) -> None:
        """A file that ends anywhere is taken up again, and verifies without an anchor."""
        content = b"".join(line + b"\n" for line in written(tmp_path, clock, None, notes=6))
        for end in range(len(content)):
            put_back(tmp_path, [])
            (tmp_path / "000000000001.jsonl").write_bytes(content[:end])
            again = Journal(tmp_path, KEY, None, clock)
            again.note("root", "vault.put", "mqtt/plant", "done")
            again.close()
            assert journal.verify(tmp_path, PUBLIC, None).flaw is None

    def test_a_full_disk_loses_no_service_and_is_noted_later(
        self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = Journal(tmp_path, KEY, None, clock)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            for number in range(3):
                one.note("root", "vault.get", f"a/{number}", "done")
        one.note("root", "vault.get", "a/after", "done")
        one.close()
        assert journal.verify(tmp_path, PUBLIC, None).flaw is None
        entries = [chain.parse(line) for line in journal.read(tmp_path)]
        assert [(entry.action, entry.subject) for entry in entries[1:3]] == [
            ("audit.lost", ""),
            ("vault.get", "a/after"),
        ]
        assert entries[1].detail == {"entries": 3}

    def test_a_counter_that_does_not_answer_puts_the_checkpoint_off(self, tmp_path: Path, clock: Clock) -> None:
        counter = Counting()
        one = Journal(tmp_path, KEY, counter, clock)
        counter.answers = False
        for number in range(CHECKPOINT_ENTRIES + 1):
            one.note("root", "vault.get", f"a/{number}", "done")
        counter.answers = True
        one.close()
        report = journal.verify(tmp_path, PUBLIC, counter)
        assert report.flaw is None
        assert report.unsigned == 0


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TestFloods:
    def test_like_notes_are_counted_not_written(self, tmp_path: Path, clock: Clock) -> None:
        one = Journal(tmp_path, KEY, None, clock)
        for _ in range(10_000):
            one.note("uid 1000", "vault.get", "mqtt/plant", "refused")
        clock.now += WINDOW_NS
        one.tick()
        entries = [chain.parse(line) for line in journal.read(tmp_path)]
        refused = [entry.detail for entry in entries if entry.outcome == "refused"]
        assert refused == [{}, {"repeated": 9_999}]

    def test_many_kinds_are_bounded(self, tmp_path: Path, clock: Clock) -> None:
        one = Journal(tmp_path, KEY, None, clock)
        for number in range(MAX_KEPT * 2):
            one.note("uid 1000", "vault.get", f"mqtt/{number}", "refused")
            one.note("uid 1000", "vault.get", f"mqtt/{number}", "refused")
        one.close()
        entries = [chain.parse(line) for line in journal.read(tmp_path)]
        assert sum(entry.detail.get("repeated", 0) for entry in entries) == MAX_KEPT * 2

    def test_the_budget_is_kept_and_the_chain_still_verifies(
        self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal, "FILE_BYTES", 4 << 10)
        monkeypatch.setattr(journal, "BUDGET_BYTES", 16 << 10)
        counter = Counting()
        written(tmp_path, clock, counter, notes=500)
        report = journal.verify(tmp_path, PUBLIC, counter)
        assert report.flaw is None
        assert report.first > 400
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 24 << 10

    def test_a_minute_after_the_first_unsigned_entry_all_is_signed(self, tmp_path: Path, clock: Clock) -> None:
        one = Journal(tmp_path, KEY, None, clock)
        one.note("root", "vault.put", "mqtt/plant", "done")
        assert journal.verify(tmp_path, PUBLIC, None).unsigned == 2
        clock.now += CHECKPOINT_NS
        one.tick()
        assert journal.verify(tmp_path, PUBLIC, None).unsigned == 0


@given(st.lists(st.text(max_size=2000), min_size=4, max_size=4), st.dictionaries(st.text(), st.text()))
def test_any_text_is_one_line(texts: list[str], detail: dict[str, str]) -> None:
    add: Callable[..., bytes] = chain.add
    line = add(chain.Tip(), 1, *texts, detail)
    assert b"\n" not in line
    assert len(line) <= chain.MAX_LINE_BYTES
    assert chain.verify([line], PUBLIC, None).flaw is None
