"""Keys wrapped for a recipient: they unwrap with one private key, for one purpose."""

import hashlib

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import SealError
from appliance.vault import hpke
from appliance.vault.hpke import KINDS, MAX_INFO_BYTES, MAX_KEY_BYTES, MAX_WRAPPED_BYTES, Kind

KEY = bytes(range(32))
each_kind = pytest.mark.parametrize("kind", KINDS)
RECIPIENTS = {kind: hpke.from_seed(hashlib.sha256(kind.encode()).digest(), kind) for kind in KINDS}


@each_kind
def test_what_is_wrapped_unwraps_with_its_key_and_info_only(kind: Kind) -> None:
    private, public = hpke.generate(kind)
    wrapped = hpke.wrap(public, KEY, b"vault 1")
    assert hpke.unwrap(private, wrapped, b"vault 1") == KEY
    for other in (hpke.generate(kind)[0], *(private for private, _ in RECIPIENTS.values())):
        with pytest.raises(SealError):
            hpke.unwrap(other, wrapped, b"vault 1")
    for info in (b"", b"vault 2", b"vault 1\0"):
        with pytest.raises(SealError, match="another key or another purpose"):
            hpke.unwrap(private, wrapped, info)


@each_kind
def test_a_seed_gives_one_key_and_knows_its_public_key(kind: Kind) -> None:
    seed = bytes(range(32))
    private, public = hpke.from_seed(seed, kind)
    assert (private, public) == hpke.from_seed(seed, kind)
    assert private == bytes((KINDS.index(kind) + 1,)) + seed
    assert hpke.public_of(private) == public
    assert hpke.kind_of(public) == kind
    assert hpke.from_seed(seed[::-1], kind)[1] != public


def test_without_a_kind_it_is_x25519() -> None:
    assert hpke.kind_of(hpke.generate()[1]) == "x25519"
    assert hpke.from_seed(KEY) == hpke.from_seed(KEY, "x25519")


@each_kind
def test_no_two_wrappings_are_alike(kind: Kind) -> None:
    private, public = RECIPIENTS[kind]
    wrapped = [hpke.wrap(public, KEY, b"") for _ in range(20)]
    assert len({record[-48:] for record in wrapped}) == len({record[:40] for record in wrapped}) == 20
    assert {hpke.unwrap(private, record, b"") for record in wrapped} == {KEY}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.binary(min_size=1, max_size=MAX_KEY_BYTES), st.binary(max_size=100))
def test_any_key_that_fits_is_wrapped(kind: Kind, key: bytes, info: bytes) -> None:
    private, public = RECIPIENTS[kind]
    wrapped = hpke.wrap(public, key, info)
    assert len(wrapped) <= MAX_WRAPPED_BYTES
    assert cbor2.dumps(cbor2.loads(wrapped), canonical=True) == wrapped
    assert hpke.unwrap(private, wrapped, info) == key


@each_kind
def test_a_flipped_bit_anywhere_unwraps_nothing(kind: Kind) -> None:
    private, public = RECIPIENTS[kind]
    wrapped = hpke.wrap(public, KEY, b"")
    step = 1 if kind == "x25519" else 13  # of the larger ones a share: each costs a decapsulation
    for bit in [*range(80), *range(80, 8 * len(wrapped), step)]:
        forged = bytearray(wrapped)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError):
            hpke.unwrap(private, bytes(forged), b"")


@each_kind
def test_another_form_is_refused(kind: Kind) -> None:
    private, public = RECIPIENTS[kind]
    wrapped = hpke.wrap(public, KEY, b"")
    form, number, sealed = cbor2.loads(wrapped)
    forms: list[bytes] = [cbor2.dumps(fields) for fields in ([2, number, sealed], [form, 3, sealed], [form, 0, sealed])]
    forms += [cbor2.dumps(fields) for fields in ([form, 3 - number, sealed], [form, number], sealed, [sealed] * 3)]
    forms += [cbor2.dumps([form, number, content]) for content in (b"", bytes(48), sealed + b"\0", bytes(3000))]
    forms += [b"\x9f" + wrapped[1:] + b"\xff", wrapped + b"\0", wrapped[:-1], b"", bytes(MAX_WRAPPED_BYTES + 1)]
    for data in forms:
        with pytest.raises(SealError):
            hpke.unwrap(private, data, b"")
    room = {"x25519": 32, "mlkem768-x25519": 1120}[kind] + 16
    for size in (room, room + MAX_KEY_BYTES + 1):
        with pytest.raises(SealError, match=f"^{size} bytes where {room + 1} to {room + MAX_KEY_BYTES} stand"):
            hpke.unwrap(private, cbor2.dumps([form, number, bytes(size)]), b"")
    assert hpke.unwrap(private, wrapped, b"") == KEY


def test_the_other_kind_of_recovery_key_is_named() -> None:
    wrapped = hpke.wrap(RECIPIENTS["x25519"][1], KEY, b"")
    with pytest.raises(SealError, match="wrapped for a x25519 key, and this is a mlkem768-x25519 one"):
        hpke.unwrap(RECIPIENTS["mlkem768-x25519"][0], wrapped, b"")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=40) | st.integers(0, 1300))
def test_keys_that_are_none_are_refused(kind: Kind, harm: bytes | int) -> None:
    """Random bytes, or the right ones cut."""
    private, public = RECIPIENTS[kind]
    for right, use in ((private, hpke.public_of), (public, hpke.kind_of)):
        key = harm if isinstance(harm, bytes) else right[: harm % len(right)]
        with pytest.raises(SealError):
            use(key)


def test_public_keys_that_give_no_secret_are_refused() -> None:
    """The points of small order, which make every shared secret the same; a lattice key out of range."""
    for point in (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
        with pytest.raises(SealError, match="nothing can be wrapped to"):
            hpke.wrap(b"\1" + point, KEY, b"")
        with pytest.raises(SealError, match="nothing can be wrapped to"):
            hpke.wrap(RECIPIENTS["mlkem768-x25519"][1][:-32] + point, KEY, b"")
    with pytest.raises(SealError, match="nothing can be wrapped to"):
        hpke.wrap(b"\2" + b"\xff" * 1216, KEY, b"")
    low = cbor2.dumps([1, 1, bytes(32) + bytes(48)])
    with pytest.raises(SealError, match="another key"):
        hpke.unwrap(RECIPIENTS["x25519"][0], low, b"")


def test_what_is_out_of_bounds_is_not_taken() -> None:
    private, public = RECIPIENTS["x25519"]
    for key in (b"", bytes(MAX_KEY_BYTES + 1)):
        with pytest.raises(ValueError, match="between 1 and 1024"):
            hpke.wrap(public, key, b"")
    with pytest.raises(ValueError, match="info of 4097 bytes"):
        hpke.wrap(public, KEY, bytes(MAX_INFO_BYTES + 1))
    with pytest.raises(ValueError, match="seed of 32 bytes is wanted, not of 31"):
        hpke.from_seed(bytes(31))
    assert hpke.unwrap(private, hpke.wrap(public, KEY, bytes(MAX_INFO_BYTES)), bytes(MAX_INFO_BYTES)) == KEY
