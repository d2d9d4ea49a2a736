"""The ciphers, HKDF and HMAC give the published figures, and refuse what is published as wrong.

A selection stands in tests/vectors/vault/ciphers.json. Where MILLWRIGHT_WYCHEPROOF names a checkout of Wycheproof, all
of its vectors for these run, too.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from appliance.errors import SealError
from appliance.vault.ciphers import AES_256_GCM, NONCE_BYTES, SM4_GCM, TAG_BYTES, Cipher, hkdf

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "vault" / "ciphers.json"
FIGURES: dict[str, dict[str, Any]] = json.loads(VECTORS.read_text(encoding="utf-8"))
WYCHEPROOF = os.environ.get("MILLWRIGHT_WYCHEPROOF")
CIPHERS = (AES_256_GCM, SM4_GCM)
each_cipher = pytest.mark.parametrize("cipher", CIPHERS, ids=lambda cipher: cipher.name)
unhex = bytes.fromhex


def rows(cipher: Cipher) -> Iterator[list[bytes]]:
    for row in FIGURES[cipher.name]["opens"]:
        yield [unhex(field) for field in row]


def refused(cipher: Cipher, key: bytes, nonce: bytes, sealed: bytes, aad: bytes) -> None:
    with pytest.raises(SealError, match="tag does not fit"):
        cipher.open(key, nonce, sealed, aad)


@each_cipher
def test_the_right_answers_are_given(cipher: Cipher) -> None:
    for key, nonce, aad, plaintext, sealed in rows(cipher):
        assert cipher.seal(key, nonce, plaintext, aad) == sealed
        assert cipher.open(key, nonce, sealed, aad) == plaintext


def test_among_them_is_rfc_8998() -> None:
    """Appendix A.1: SM4-GCM."""
    words = "".join(letter * 16 for letter in "abcdefea")
    row = [
        "0123456789abcdeffedcba9876543210",
        "00001234567800000000abcd",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        words,
        "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735"
        "d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d"
        "83de3541e4c2b58177e065a9bf7b62ec",
    ]
    assert row in FIGURES["sm4-gcm"]["opens"]


@each_cipher
def test_every_forged_tag_is_refused(cipher: Cipher) -> None:
    *_, (key, nonce, aad, plaintext, sealed) = rows(cipher)
    changes = [unhex(change) for change in FIGURES[cipher.name]["tag_changes"]]
    assert len(changes) == 27
    for change in changes:
        tag = bytes(one ^ other for one, other in zip(sealed[-TAG_BYTES:], change, strict=True))
        refused(cipher, key, nonce, sealed[:-TAG_BYTES] + tag, aad)
    assert cipher.open(key, nonce, sealed, aad) == plaintext


@each_cipher
def test_whatever_else_is_changed_is_refused(cipher: Cipher) -> None:
    for key, nonce, aad, _, sealed in rows(cipher):
        refused(cipher, key, bytes((nonce[0] ^ 1,)) + nonce[1:], sealed, aad)
        refused(cipher, bytes((key[0] ^ 1,)) + key[1:], nonce, sealed, aad)
        refused(cipher, key, nonce, sealed, aad + b"\0")
        refused(cipher, key, nonce, sealed + b"\0", aad)
        for cut in range(min(len(sealed), TAG_BYTES + 1)):
            refused(cipher, key, nonce, sealed[:cut], aad)
        for bit in range(0, 8 * len(sealed), 8 * len(sealed) // 16):
            forged = bytearray(sealed)
            forged[bit // 8] ^= 1 << bit % 8
            refused(cipher, key, nonce, bytes(forged), aad)


@each_cipher
def test_nonces_and_keys_of_other_sizes_are_not_taken(cipher: Cipher) -> None:
    key = bytes(cipher.key_bytes)
    for size in FIGURES[cipher.name]["nonce_sizes_refused"]:
        assert size != NONCE_BYTES
        for use in (cipher.seal, cipher.open):
            with pytest.raises(ValueError, match=f"nonce of 12 bytes is wanted, not of {size}"):
                use(key, bytes(size), bytes(32), b"")
    for size in {0, 15, 16, 17, 24, 31, 32, 33} - {cipher.key_bytes}:
        for use in (cipher.seal, cipher.open):
            with pytest.raises(ValueError, match=f"key of {cipher.key_bytes} bytes is wanted, not of {size}"):
                use(bytes(size), bytes(NONCE_BYTES), bytes(32), b"")


def test_hkdf_gives_the_right_answers() -> None:
    figures = FIGURES["hkdf-sha256"]
    for row in figures["derives"]:
        key, salt, info, derived = (unhex(field) for field in row)
        assert hkdf(hashes.SHA256(), key, salt, info, len(derived)) == derived
    *fields, length, digest = figures["largest"]
    key, salt, info = (unhex(field) for field in fields)
    assert hashlib.sha256(hkdf(hashes.SHA256(), key, salt, info, length)).hexdigest() == digest
    for size in figures["sizes_refused"]:
        with pytest.raises(ValueError):  # noqa: PT011  # the library's, whose words are its own affair
            hkdf(hashes.SHA256(), key, salt, info, size)


def code(key: bytes, message: bytes) -> bytes:
    context = HMAC(key, hashes.SM3())
    context.update(message)
    return context.finalize()


def hkdf_by_hand(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 over HMAC-SM3, of which the figures below are published."""
    secret, block, derived = code(salt or bytes(32), key), b"", b""
    while len(derived) < length:
        block = code(secret, block + info + bytes((len(derived) // 32 + 1,)))
        derived += block
    return derived[:length]


def test_hmac_sm3_gives_the_right_answers_and_hkdf_stands_on_it() -> None:
    """Nobody has published figures of HKDF-SM3: it is HKDF written out over a hash code that has some."""
    for row in FIGURES["hmac-sm3"]["codes"]:
        key, message, right = (unhex(field) for field in row)
        assert code(key, message) == right
        for salt in (b"", message[:32]):
            for length in (1, 32, 33, 76, 1024):
                assert hkdf(hashes.SM3(), key, salt, b"info", length) == hkdf_by_hand(key, salt, b"info", length)


def wycheproof(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Its groups and their tests."""
    path = Path(WYCHEPROOF or "") / "testvectors_v1" / f"{name}_test.json"
    for group in json.loads(path.read_text(encoding="utf-8"))["testGroups"]:
        for test in group["tests"]:
            yield group, test


class TestAllOfWycheproof:
    __test__ = bool(WYCHEPROOF)  # there is nothing to skip: the selection above is what has to run

    @pytest.mark.parametrize(("cipher", "name"), [(AES_256_GCM, "aes_gcm"), (SM4_GCM, "sm4_gcm")])
    def test_all_of_wycheproofs_gcm(self, cipher: Cipher, name: str) -> None:
        """What has another size of key or nonce is not ours to open: it must be refused, valid or not."""
        ran = {"opened": 0, "forged": 0, "not ours": 0}
        for group, test in wycheproof(name):
            key, nonce, aad, plaintext = (unhex(test[field]) for field in ("key", "iv", "aad", "msg"))
            sealed = unhex(test["ct"]) + unhex(test["tag"])
            if group["keySize"] != 8 * cipher.key_bytes or group["ivSize"] != 8 * NONCE_BYTES:
                for use, content in ((cipher.seal, plaintext), (cipher.open, sealed)):
                    with pytest.raises(ValueError, match="is wanted"):
                        use(key, nonce, content, aad)
                ran["not ours"] += 1
            elif test["result"] == "valid":
                assert cipher.seal(key, nonce, plaintext, aad) == sealed
                assert cipher.open(key, nonce, sealed, aad) == plaintext
                ran["opened"] += 1
            else:
                refused(cipher, key, nonce, sealed, aad)
                ran["forged"] += 1
        assert min(ran.values()) > 0
        print(f"{name}: {ran}")

    def test_all_of_wycheproofs_hkdf_sha256(self) -> None:
        ran = {"derived": 0, "refused": 0}
        for _, test in wycheproof("hkdf_sha256"):
            key, salt, info, right = (unhex(test[field]) for field in ("ikm", "salt", "info", "okm"))
            if test["result"] == "valid":
                assert hkdf(hashes.SHA256(), key, salt, info, test["size"]) == right
                ran["derived"] += 1
            else:
                with pytest.raises(ValueError):  # noqa: PT011  # the library's, whose words are its own affair
                    hkdf(hashes.SHA256(), key, salt, info, test["size"])
                ran["refused"] += 1
        assert min(ran.values()) > 0
        print(f"hkdf_sha256: {ran}")

    def test_all_of_wycheproofs_hmac_sm3(self) -> None:
        ran = {"right": 0, "wrong": 0}
        for group, test in wycheproof("hmac_sm3"):
            found = code(unhex(test["key"]), unhex(test["msg"]))[: group["tagSize"] // 8]
            assert (found.hex() == test["tag"]) == (test["result"] == "valid")
            ran["right" if test["result"] == "valid" else "wrong"] += 1
        assert min(ran.values()) > 0
        print(f"hmac_sm3: {ran}")
