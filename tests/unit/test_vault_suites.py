"""The suites: what is sealed opens under the same key with the same aad, and under nothing else."""

import ast
import dataclasses
import os
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Context
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import SealError, VaultError
from appliance.vault import suites
from appliance.vault.suites import AES, COMMITMENT_BYTES, OVERHEAD_BYTES, SALT_BYTES, SM4, SUITES, Suite

KEY = bytes(range(32))
BODY = SALT_BYTES + COMMITMENT_BYTES
keys = st.binary(min_size=32, max_size=32)
each_suite = pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
any_suite = st.sampled_from(SUITES)


@settings(max_examples=200)
@given(any_suite, keys, st.binary(max_size=300), st.binary(max_size=300))
def test_what_is_sealed_opens(suite: Suite, key: bytes, plaintext: bytes, aad: bytes) -> None:
    sealed = suite.seal(key, plaintext, aad)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert suite.open(key, sealed, aad) == plaintext


@settings(max_examples=200)
@given(any_suite, keys, keys, st.binary(max_size=50), st.binary(max_size=50), st.binary(max_size=50))
def test_another_key_or_aad_opens_nothing(
    suite: Suite, key: bytes, other_key: bytes, plaintext: bytes, aad: bytes, other_aad: bytes
) -> None:
    sealed = suite.seal(key, plaintext, aad)
    if other_key != key:
        refused(suite, other_key, sealed, aad)
    if other_aad != aad:
        refused(suite, key, sealed, other_aad)
    (other_suite,) = set(SUITES) - {suite}
    refused(other_suite, key, sealed, aad)


@each_suite
def test_a_flipped_bit_anywhere_opens_nothing(suite: Suite) -> None:
    sealed = suite.seal(KEY, b"plaintext", b"place")
    for bit in range(8 * len(sealed)):
        forged = bytearray(sealed)
        forged[bit // 8] ^= 1 << bit % 8
        refused(suite, KEY, bytes(forged), b"place")


@each_suite
def test_whatever_is_cut_or_longer_opens_nothing(suite: Suite) -> None:
    sealed = suite.seal(KEY, b"plaintext", b"place")
    for size in range(len(sealed)):
        with pytest.raises(SealError, match="too few or too many" if size < OVERHEAD_BYTES else "altered|fit"):
            suite.open(KEY, sealed[:size], b"place")
        refused(suite, KEY, sealed[len(sealed) - size :], b"place")
    refused(suite, KEY, sealed + b"\0", b"place")
    refused(suite, KEY, sealed[:BODY] + sealed, b"place")


def refused(suite: Suite, key: bytes, sealed: bytes, aad: bytes) -> None:
    with pytest.raises(SealError):
        suite.open(key, sealed, aad)


# Key commitment. GCM's tag is linear in the ciphertext: one block can be chosen that makes the tags of two keys meet.
def product(one: int, two: int) -> int:
    """In GCM's field: bits are reflected, the polynomial is x^128 + x^7 + x^2 + x + 1."""
    found = 0
    for bit in range(127, -1, -1):
        if two >> bit & 1:
            found ^= one
        one = one >> 1 ^ (0xE1 << 120 if one & 1 else 0)
    return found


def inverse(one: int) -> int:
    found, square = 1 << 127, one
    for _ in range(127):  # 2^128 - 2
        square = product(square, square)
        found = product(found, square)
    return found


def block(suite: Suite, key: bytes, content: bytes) -> int:
    cipher = algorithms.AES(key) if suite is AES else algorithms.SM4(key)
    context = Context(cipher, modes.ECB()).encryptor()  # one block: it is what GCM is made of
    return int.from_bytes(context.update(content), "big")


def hashed(subkey: int, aad: bytes, ciphertext: bytes) -> int:
    found = 0
    for part in (aad, ciphertext):
        for at in range(0, len(part), 16):
            found = product(found ^ int.from_bytes(part[at : at + 16].ljust(16, b"\0"), "big"), subkey)
    return product(found ^ (8 * len(aad) << 64 | 8 * len(ciphertext)), subkey)


def collision(suite: Suite, two: list[tuple[bytes, bytes]], aad: bytes) -> bytes:
    """Ciphertext and tag that open under both of these keys and nonces."""
    subkeys = [block(suite, key, bytes(16)) for key, _ in two]
    masks = [block(suite, key, nonce + b"\0\0\0\1") for key, nonce in two]
    rest = [hashed(subkey, aad, bytes(16)) ^ mask for subkey, mask in zip(subkeys, masks, strict=True)]
    weights = [product(subkey, subkey) for subkey in subkeys]
    chosen = product(rest[0] ^ rest[1], inverse(weights[0] ^ weights[1])).to_bytes(16, "big")
    return chosen + (hashed(subkeys[0], aad, chosen) ^ masks[0]).to_bytes(16, "big")


@each_suite
def test_bytes_that_open_under_two_keys_are_refused(suite: Suite) -> None:
    """The bare cipher is fooled; the suite is not, whichever of the commitments the forger writes."""
    salt, aad, both = os.urandom(SALT_BYTES), b"place", (KEY, KEY[::-1])
    derived = [suite._keys(key, salt, aad) for key in both]
    body = collision(suite, [(bytes(key), nonce) for _, key, nonce in derived], aad)
    plaintexts = {suite.cipher.open(key, nonce, body, aad) for _, key, nonce in derived}
    assert len(plaintexts) == 2
    for mine, theirs in ((0, 1), (1, 0)):
        sealed = salt + derived[mine][0] + body
        assert suite.open(both[mine], sealed, aad) in plaintexts
        with pytest.raises(SealError, match="another key"):
            suite.open(both[theirs], sealed, aad)


@each_suite
def test_the_commitment_is_compared_before_anything_is_decrypted(suite: Suite) -> None:
    def decrypts(*_: object) -> NoReturn:
        raise AssertionError("it was decrypted")

    watched = dataclasses.replace(suite, cipher=dataclasses.replace(suite.cipher, open=decrypts))
    sealed = suite.seal(KEY, b"plaintext", b"place")
    refused(watched, KEY[::-1], sealed, b"place")
    with pytest.raises(AssertionError, match="it was decrypted"):
        watched.open(KEY, sealed, b"place")


@each_suite
def test_no_salt_key_or_nonce_comes_twice(suite: Suite) -> None:
    sealed = [suite.seal(KEY, b"plaintext", b"place") for _ in range(2000)]
    assert len({record[:SALT_BYTES] for record in sealed}) == 2000
    assert len({record[SALT_BYTES:BODY] for record in sealed}) == 2000
    used = [suite._keys(KEY, record[:SALT_BYTES], b"place") for record in sealed]
    assert len({(bytes(key), nonce) for _, key, nonce in used}) == 2000
    assert not {bytes(key) for _, key, _ in used} & {record[:SALT_BYTES] for record in sealed}


def test_only_test_vectors_choose_a_salt(repository: Path) -> None:
    """Nothing in the product calls it, but the two that wrap it with a fresh salt."""
    callers = set()
    for path in (repository / "appliance").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if "seal_with_salt" in (getattr(node, "attr", ""), getattr(node, "id", "")):
                callers.add(path.name)
    assert callers == {"suites.py", "envelope.py"}


@each_suite
def test_derived_keys_are_apart(suite: Suite) -> None:
    """By purpose, by salt, by suite, by length of the purpose; from the codes and from what seals."""
    derived = [suite.derive(KEY, info, 32, salt) for info in (b"", b"a", b"ab") for salt in (b"", b"a", b"\1")]
    derived += [other.derive(KEY, b"a") for other in SUITES if other is not suite]
    derived += [suite.mac(KEY, data) for data in (b"", b"a", b"ab")]
    for salt in (bytes(32), os.urandom(32)):
        commitment, key, _ = suite._keys(KEY, salt, b"a")
        derived += [commitment, bytes(key), suite.derive(KEY, b"a", 32, salt=salt + b"\1")]
    assert len(set(derived)) == len(derived)
    assert suite.derive(KEY, b"a") == suite.derive(KEY, b"a")
    assert [len(suite.derive(KEY, b"a", size)) for size in (1, 31, 1024)] == [1, 31, 1024]
    assert suite.derive(KEY, b"a", 64)[:32] == suite.derive(KEY, b"a")


@each_suite
def test_what_is_out_of_bounds_is_not_taken(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (b"", KEY[:16], KEY + b"\0"):
        for use in (lambda key=key: suite.seal(key, b"", b""), lambda key=key: suite.mac(key, b"")):
            with pytest.raises(ValueError, match="key of 32 bytes is wanted"):
                use()
    for size in (0, -1, 1025):
        with pytest.raises(ValueError, match="between 1 and 1024"):
            suite.derive(KEY, b"", size)
    with pytest.raises(ValueError, match="associated data of 1048577 bytes"):
        suite.seal(KEY, b"", bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match="salt of 32 bytes is wanted, not of 31"):
        suites.seal_with_salt(suite, KEY, b"", b"", bytes(31))
    monkeypatch.setattr(suites, "MAX_PLAINTEXT_BYTES", 1000)
    sealed = suite.seal(KEY, bytes(1000), b"")
    with pytest.raises(VaultError, match="1001 bytes are more than can be sealed at once, 1000"):
        suite.seal(KEY, bytes(1001), b"")
    with pytest.raises(SealError, match="1081 bytes are too few or too many"):
        suite.open(KEY, sealed + b"\0", b"")


def test_suites_are_found_by_number_and_name() -> None:
    assert [suites.by_id(suite.id) for suite in SUITES] == list(SUITES) == [AES, SM4]
    assert [suites.by_name(suite.name) for suite in SUITES] == list(SUITES)
    for number in (0, 3, 255):
        with pytest.raises(SealError, match=f"no suite {number}\n  -> a newer release"):
            suites.by_id(number)
    with pytest.raises(VaultError, match="aes-256-gcm, sm4-gcm"):
        suites.by_name("rot13")
