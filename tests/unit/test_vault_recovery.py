"""The printed recovery key and the recipients' lines: what a person may mistype, and what he is told."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import SealError, VaultError
from appliance.vault import recovery
from appliance.vault.recovery import GROUP, GROUPS, ROW, Recipient, RecoveryKey, distinct, read_recipients
from appliance.vault.secret import Secret

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PRINTED = RecoveryKey(Secret(bytes(range(32)))).printed()
keys = st.binary(min_size=32, max_size=32).map(lambda seed: RecoveryKey(Secret(seed)))
places = st.integers(0, GROUPS * GROUP - 1)


def characters(key: RecoveryKey) -> list[str]:
    return list(re.sub(r"\W", "", key.printed()))


def place_words(group: int) -> str:
    return f"group {group % ROW + 1} of row {group // ROW + 1}"


def test_known_answer() -> None:
    """Paper outlives releases: this text must be read by all that follow."""
    assert PRINTED.splitlines() == [
        "0001-G40Q-R401-M309-E204-918S",
        "5GRM-38E8-1W8T-124N-GK22-GAHK",
        "C5RW-R340-D1P2-70X2-3RF5-TE0Z",
    ]


@given(keys)
def test_what_is_printed_is_read(key: RecoveryKey) -> None:
    again = RecoveryKey.read(key.printed())
    assert again.printed() == key.printed()
    assert again.recipient() == key.recipient()
    assert re.fullmatch(r"(([0-9A-Z]{4}-){5}[0-9A-Z]{4}\n){2}([0-9A-Z]{4}-){5}[0-9A-Z]{4}", key.printed())


@given(keys, st.randoms())
def test_how_it_is_typed_does_not_matter(key: RecoveryKey, dice: random.Random) -> None:
    likes = {"0": "0Oo", "1": "1IiLl"}
    typed = [dice.choice(likes.get(one, one + one.lower())) for one in characters(key)]
    text = "".join(one + dice.choice(["", "", " ", "-", "\n", "\u2013", "_", "."]) for one in typed)
    assert RecoveryKey.read(text).printed() == key.printed()


def test_full_width_characters_are_read() -> None:
    wide = "".join(chr(ord(one) + 0xFEE0) if one.isalnum() else one for one in PRINTED)
    assert RecoveryKey.read(wide).printed() == PRINTED


@given(keys, places, st.sampled_from(ALPHABET + "U*ÄÜ"))
def test_one_wrong_character_names_its_group(key: RecoveryKey, place: int, wrong: str) -> None:
    typed = characters(key)
    if typed[place] == wrong:
        return
    typed[place] = wrong
    groups = ["".join(typed[at : at + GROUP]) for at in range(0, len(typed), GROUP)]
    with pytest.raises(VaultError) as caught:
        RecoveryKey.read("-".join(groups))
    assert caught.value.message == f"in the recovery key, {place_words(place // GROUP)} is mistyped"


@given(keys, places, st.integers(1, GROUP - 1))
def test_two_characters_that_changed_places_name_their_group(key: RecoveryKey, place: int, step: int) -> None:
    typed = characters(key)
    other = place - place % GROUP + (place + step) % GROUP
    if typed[place] == typed[other]:
        return
    typed[place], typed[other] = typed[other], typed[place]
    with pytest.raises(VaultError, match=f"{place_words(place // GROUP)} is mistyped"):
        RecoveryKey.read("".join(typed))


@given(keys, st.integers(0, GROUPS - 1), st.integers(1, GROUPS - 1))
def test_groups_that_changed_places_are_both_named(key: RecoveryKey, one: int, step: int) -> None:
    groups = key.printed().replace("\n", "-").split("-")
    other = (one + step) % GROUPS
    if groups[one] == groups[other]:
        return
    groups[one], groups[other] = groups[other], groups[one]
    first, second = sorted((one, other))
    with pytest.raises(VaultError, match=f"{place_words(first)}, {place_words(second)} are mistyped"):
        RecoveryKey.read("-".join(groups))


def test_a_wrong_group_that_adds_up_is_seen_by_the_sum_over_all() -> None:
    groups = PRINTED.replace("\n", "-").split("-")
    assert groups[0] == "0001"
    found = 0
    for first in ALPHABET:
        for last in ALPHABET:
            typed = "-".join([f"{first}00{last}", *groups[1:]])
            try:
                assert RecoveryKey.read(typed).printed() == PRINTED
            except VaultError as error:
                found += "does not add up" in error.message
    assert found == len(ALPHABET) - 1  # one last character for each first one, but for the right pair


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "here are 0"),
        (PRINTED[:-1].replace("-", ""), "here are 71"),
        (PRINTED[:-1], "group 6 of row 3 is mistyped"),
        (PRINTED + "0", "group 6 of row 3 is mistyped"),
        (PRINTED.splitlines()[0], "here are 24"),
        ("0" * 10_000_000, "18 groups of 4"),
    ],
)
def test_too_short_and_too_long(text: str, words: str) -> None:
    with pytest.raises(VaultError, match=words):
        RecoveryKey.read(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(VaultError) as caught:
        RecoveryKey.read(text)
    assert caught.value.remedy


def test_a_message_shows_nothing_of_what_was_typed() -> None:
    groups = PRINTED.replace("\n", "-").split("-")
    groups[3] = "ZZZZ"
    with pytest.raises(VaultError) as caught:
        RecoveryKey.read("-".join(groups))
    assert not any(group in str(caught.value) for group in groups)
    assert PRINTED[:4] not in repr(RecoveryKey.read(PRINTED))


def test_parts_of_a_key_are_independent() -> None:
    key = RecoveryKey.new()
    parts = [key.recipient().public[1:], key.recipient().signer, key.voucher().reveal()]
    assert len({*parts, RecoveryKey.new().recipient().signer}) == 4
    assert key.is_of(key.recipient("office", "mlkem768-x25519"))
    assert not key.is_of(RecoveryKey.new().recipient())


@pytest.mark.parametrize("kind", ["x25519", "mlkem768-x25519"])
def test_wrapped_to_a_recipient(kind: recovery.hpke.Kind) -> None:
    key = RecoveryKey.new()
    recipient = key.recipient("office", kind)
    wrapped = recipient.wrap(Secret(b"k" * 32), b"for this")
    assert key.unwrap(recipient, wrapped, b"for this").reveal() == b"k" * 32
    with pytest.raises(SealError):
        key.unwrap(recipient, wrapped, b"for that")
    with pytest.raises(SealError):
        RecoveryKey.new().unwrap(recipient, wrapped, b"for this")


def test_signatures() -> None:
    key = RecoveryKey.new()
    signature = key.sign(b"words")
    assert key.recipient().verify(signature, b"words")
    assert not key.recipient().verify(signature, b"other words")
    assert not key.recipient().verify(b"", b"words")
    assert not RecoveryKey.new().recipient().verify(signature, b"words")
    assert not Recipient("office", b"", b"\xff" * 32).verify(signature, b"words")


# ---- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x25519", "mlkem768-x25519"])
def test_lines_are_read(kind: recovery.hpke.Kind) -> None:
    office, depot = RecoveryKey.new().recipient("head-office", kind), RecoveryKey.new().recipient("depot.2", kind)
    text = f"# who may open our boxes\n\n{office.line()}  # in the safe\r\n  {depot.line()}\n"
    assert read_recipients(text) == (office, depot)


@given(st.data())
def test_a_mistyped_line_is_refused(data: st.DataObject) -> None:
    line = RecoveryKey(Secret(bytes(32))).recipient("office").line()
    at = data.draw(st.integers(0, len(line) - 1))
    wrong = line[:at] + data.draw(st.characters(exclude_characters=line[at] + "#")) + line[at + 1 :]
    with pytest.raises(VaultError, match=r"line \d is not a recipient|two recipients"):
        distinct((*read_recipients(wrong), RecoveryKey(Secret(bytes(32))).recipient("office")))


@pytest.mark.parametrize("text", ["recipient-1 office", "ssh-ed25519 AAAA me", "recipient-1 Office AAAA", "x", "a b c"])
def test_another_line_is_named(text: str) -> None:
    good = RecoveryKey.new().recipient("office").line()
    with pytest.raises(VaultError, match="line 2 is not a recipient"):
        read_recipients(f"{good}\n{text}\n")


def test_twins_crowds_and_novels_are_refused() -> None:
    office = RecoveryKey.new().recipient("office")
    with pytest.raises(VaultError, match="same name or the same key"):
        read_recipients(f"{office.line()}\n{RecoveryKey.new().recipient('office').line()}")
    with pytest.raises(VaultError, match="same name or the same key"):
        distinct([office, Recipient("other", office.public, office.signer)])
    with pytest.raises(VaultError, match="at most 16"):
        distinct(RecoveryKey.new().recipient(f"office-{number}") for number in range(17))
    with pytest.raises(VaultError, match="at most"):
        read_recipients("#" * (recovery.MAX_LINES_BYTES + 1))


@pytest.mark.parametrize("name", ["", "Office", "-office", "a" * 65, "a b", "a/b", "ü"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(VaultError, match="cannot name a recipient"):
        RecoveryKey.new().recipient(name)
