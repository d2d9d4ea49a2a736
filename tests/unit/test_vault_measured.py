"""The TPM's binding as bytes, and what is said when registers have moved."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import SealError
from appliance.vault import measured
from appliance.vault.measured import Blob
from hardware.tpm import LATCH, policies

KEY = bytes(range(32))
A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
SEALED = dict.fromkeys(measured.WATCHED, A)
BLOB = Blob(b"identity", b"key", b"signed", b"listed", 7, SEALED)
PLAIN = replace(BLOB, release_key=b"", signed=b"")

blobs = st.builds(
    Blob,
    st.binary(min_size=2, max_size=measured.MAX_NAME_BYTES),
    st.binary(min_size=1, max_size=measured.MAX_KEY_BYTES),
    st.binary(min_size=1, max_size=measured.MAX_SEALED_BYTES),
    st.binary(min_size=1, max_size=measured.MAX_SEALED_BYTES),
    st.integers(0, 2**32 - 1),
    st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), max_size=24),
)


@given(blobs)
def test_a_blob_comes_back(blob: Blob) -> None:
    parsed, body, check = measured.parse(measured.encode(blob, KEY))
    assert parsed == blob
    assert check == measured.check(KEY, body)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(SealError):
        measured.parse(raw)


@given(st.integers(0, len(measured.encode(BLOB, KEY)) - 1), st.integers(1, 255))
def test_what_was_altered_does_not_stand_with_its_check(at: int, bits: int) -> None:
    raw = bytearray(measured.encode(BLOB, KEY))
    raw[at] ^= bits
    try:
        _, body, check = measured.parse(bytes(raw))
    except SealError:
        return
    assert check != measured.check(KEY, body)


@pytest.mark.parametrize(
    "wrong", [replace(BLOB, signed=b""), replace(BLOB, release_key=b""), replace(BLOB, listed=b"")]
)
def test_half_a_binding_is_refused(wrong: Blob) -> None:
    with pytest.raises(SealError):
        measured.parse(measured.encode(wrong, KEY))


def told(blob: Blob, slots: list[dict[int, bytes]] | None, **moved: bytes) -> str:
    now = SEALED | {int(name[4:]): value for name, value in moved.items()}
    return measured.moved(blob, now, slots, LATCH)[0]


SLOT = {7: A, 11: A}


@pytest.mark.parametrize(
    ("blob", "slots", "moved", "named"),
    [
        (BLOB, [SLOT], {"pcr_7": B}, {7}),
        (BLOB, [SLOT], {"pcr_11": B}, {11}),
        (BLOB, [SLOT], {"pcr_7": B, "pcr_11": B}, {7, 11}),
        (BLOB, [{7: A, 11: B}], {}, {11}),  # as on the day it was sealed, and committed since
        (BLOB, [{7: A, 11: B}, {7: B, 11: C}], {"pcr_7": B, "pcr_11": B}, {7}),  # each known, not together
        (BLOB, None, {"pcr_7": B}, {7}),
        (PLAIN, [{7: A}], {"pcr_7": B, "pcr_11": B}, {7}),
        (PLAIN, None, {"pcr_11": B}, set()),
    ],
)
def test_the_registers_that_keep_it_shut_are_named(
    blob: Blob, slots: list[dict[int, bytes]] | None, moved: dict[str, bytes], named: set[int]
) -> None:
    words = told(blob, slots, **moved)
    assert {number for number in measured.WATCHED if f"PCR {number} has moved" in words} == named


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6])
def test_registers_that_are_not_bound_are_told_beside(number: int) -> None:
    words = told(BLOB, [SLOT], **{"pcr_7": B, f"pcr_{number}": B})
    assert "PCR 7 has moved" in words
    assert words.endswith(f"moved since it was sealed: PCR {number} ({measured.MEANINGS[number][0]})")


@pytest.mark.parametrize("slots", [[{7: A, 11: C}], None])
def test_a_latched_vault_is_told_as_such(slots: list[dict[int, bytes]] | None) -> None:
    before = C if slots else A
    assert "shut until the next" in told(BLOB, slots, pcr_11=policies.extended(before, LATCH))


def test_what_cannot_be_explained_is_not_made_up() -> None:
    assert "no register has moved" in told(BLOB, [SLOT])
