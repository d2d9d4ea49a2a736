"""The vault's formats, read by decoders that share nothing with the appliance: cbor2 and bare primitives.

`record` below is what another program needs in order to read a sealed record; `unwrapped` is what it needs for a key
that was wrapped for it.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from appliance.errors import SealError
from appliance.vault import envelope, hpke, suites
from appliance.vault.envelope import Place

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "vault"
RECORDS = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
WRAPPED = json.loads((FOLDER / "wrapped.json").read_text(encoding="utf-8"))
PUBLISHED = json.loads((FOLDER / "hpke.json").read_text(encoding="utf-8"))
NAMES = {"aes-256-gcm": (1, hashes.SHA256(), 32), "sm4-gcm": (2, hashes.SM3(), 16)}
unhex = bytes.fromhex


# An independent decoder of records.
def hkdf(name: str, key: bytes, salt: bytes, use: str, info: bytes, length: int) -> bytes:
    label = f"millwright/1/{name}/{use}".encode() + b"\0"
    return HKDF(NAMES[name][1], length, salt, label + info).derive(key)


def record(data: bytes, key: bytes, vault: bytes, name: str, version: int) -> bytes:
    """The plaintext; raises whatever there is to raise."""
    fields = cbor2.loads(data)
    if cbor2.dumps(fields, canonical=True) != data or [type(field) for field in fields] != [int] * 3 + [bytes] * 3:
        raise ValueError("not canonical")
    form, number, epoch, salt, commitment, body = fields
    suite = {1: "aes-256-gcm", 2: "sm4-gcm"}[number]
    if form != 1 or len(salt) != 32:
        raise ValueError("another format")
    aad = cbor2.dumps(["millwright/record", form, number, vault, name, version, epoch], canonical=True)
    size = NAMES[suite][2]
    okm = hkdf(suite, key, salt, "seal", aad, 32 + size + 12)
    if okm[:32] != commitment:
        raise ValueError("another key or place")
    record_key, nonce = okm[32 : 32 + size], okm[32 + size :]
    if number == 1:
        return AESGCM(record_key).decrypt(nonce, body, aad)
    context = Cipher(algorithms.SM4(record_key), modes.GCM(nonce, body[-16:])).decryptor()
    context.authenticate_additional_data(aad)
    return context.update(body[:-16]) + context.finalize()


# An independent HPKE (RFC 9180, base mode, HKDF-SHA256, the first message of a context), and X-Wing.
def labelled(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return HKDF.extract(hashes.SHA256(), salt or None, b"HPKE-v1" + suite + label + key)


def expanded(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    info = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return HKDFExpand(hashes.SHA256(), length, info).derive(key)


def x25519(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared_x25519(private: bytes, encapsulated: bytes) -> bytes:
    suite = b"KEM" + (0x20).to_bytes(2, "big")
    secret = labelled(suite, b"", b"eae_prk", x25519(private, encapsulated))
    return expanded(suite, secret, b"shared_secret", encapsulated + public_of(private), 32)


def shared_xwing(seed: bytes, encapsulated: bytes) -> bytes:
    parts = hashlib.shake_256(seed).digest(96)
    lattice = MLKEM768PrivateKey.from_seed_bytes(parts[:64]).decapsulate(encapsulated[:1088])
    curve = x25519(parts[64:], encapsulated[1088:])
    return hashlib.sha3_256(lattice + curve + encapsulated[1088:] + public_of(parts[64:]) + b"\\.//^\\").digest()


def schedule(shared: bytes, kem: int, aead: int, info: bytes, size: int) -> tuple[bytes, bytes]:
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (kem, 1, aead))
    context = b"\0" + labelled(suite, b"", b"psk_id_hash", b"") + labelled(suite, b"", b"info_hash", info)
    secret = labelled(suite, shared, b"secret", b"")
    return expanded(suite, secret, b"key", context, size), expanded(suite, secret, b"base_nonce", context, 12)


def unwrapped(data: bytes, private: bytes, info: bytes) -> bytes:
    form, kind, sealed = cbor2.loads(data)
    if form != 1 or kind != private[0]:
        raise ValueError("another format or kind")
    size, kem = {1: (32, 0x20), 2: (1120, 0x647A)}[kind]
    derive = shared_x25519 if kind == 1 else shared_xwing
    shared = derive(private[1:], sealed[:size])
    key, nonce = schedule(shared, kem, 2, b"millwright/wrap/1\0" + info, 32)
    return AESGCM(key).decrypt(nonce, sealed[size:], b"")


def place(case: dict[str, Any]) -> Place:
    return Place(unhex(case["vault"]), case["name"], case["version"], case["epoch"])


@pytest.mark.parametrize("case", RECORDS["records"], ids=lambda case: f"{case['suite']}, {case['case']}")
def test_a_record_opens_with_us_and_with_the_other_decoder(case: dict[str, Any]) -> None:
    key, data = unhex(case["key"]), unhex(case["record"])
    assert envelope.open(key, place(case), data).hex() == case["plaintext"]
    assert record(data, key, unhex(case["vault"]), case["name"], case["version"]).hex() == case["plaintext"]


@pytest.mark.parametrize("suite", suites.SUITES, ids=lambda suite: suite.name)
def test_a_record_made_now_opens_with_the_other_decoder(suite: suites.Suite) -> None:
    where = Place(bytes(16), "mqtt/plant", 3, 4)
    for size in (0, 1, 15, 16, 17, 255, 256, 65535, 65536):
        data = envelope.seal(suite, bytes(range(32)), where, bytes(size))
        assert record(data, bytes(range(32)), where.vault, where.name, where.version) == bytes(size)


@pytest.mark.parametrize("case", RECORDS["refused"], ids=lambda case: case["why"])
def test_a_harmed_record_is_refused_by_both(case: dict[str, str]) -> None:
    first = RECORDS["records"][0]
    with pytest.raises(SealError):
        envelope.open(unhex(first["key"]), place(first), unhex(case["record"]))
    with pytest.raises(Exception):  # noqa: B017, PT011  # thirty lines have no errors of their own
        record(unhex(case["record"]), unhex(first["key"]), unhex(first["vault"]), first["name"], first["version"])


@pytest.mark.parametrize("case", RECORDS["derived"], ids=lambda case: case["suite"])
def test_derived_keys_and_codes_are_those_of_the_vectors(case: dict[str, str]) -> None:
    suite, name, key = suites.by_name(case["suite"]), case["suite"], unhex(case["key"])
    assert suite.derive(key, b"purpose").hex() == case["derive(b'purpose')"]
    assert suite.derive(key, b"purpose", 64, b"salt").hex() == case["derive(b'purpose', 64, b'salt')"]
    assert hkdf(name, key, b"", "derive", b"purpose", 32).hex() == case["derive(b'purpose')"]
    assert hkdf(name, key, b"salt", "derive", b"purpose", 64).hex() == case["derive(b'purpose', 64, b'salt')"]
    code = hmac.HMAC(hkdf(name, key, b"", "mac", b"", 32), NAMES[name][1])
    code.update(b"data")
    assert code.finalize() == suite.mac(key, b"data") == unhex(case["mac(b'data')"])


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vault_vectors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_records_are_those_that_the_maker_makes() -> None:
    """The format has not changed under its number."""
    made = maker()
    assert made.text(made.records()) == (FOLDER / "records.json").read_text(encoding="utf-8")


def test_the_other_hpke_gives_the_published_figures() -> None:
    case = {name: unhex(value) for name, value in PUBLISHED["rfc9180-a1"].items()}
    assert public_of(case["private"]) == case["public"]
    assert shared_x25519(case["private"], case["encapsulated"]) == case["shared"]
    key, nonce = schedule(case["shared"], 0x20, 1, case["info"], 16)
    assert (key, nonce) == (case["key"], case["nonce"])
    assert AESGCM(key).decrypt(nonce, case["ciphertext"], case["aad"]) == case["plaintext"]


def test_the_other_x_wing_gives_the_published_figures() -> None:
    case = {name: unhex(value) for name, value in PUBLISHED["mlkem768-x25519"].items()}
    assert shared_xwing(case["seed"], case["encapsulated"]) == case["shared"]
    assert schedule(case["shared"], 0x647A, 3, case["info"], 32) == (case["key"], case["nonce"])


def test_seeds_give_the_published_public_keys() -> None:
    """RFC 9180's for X25519; those of X-Wing and of HPKE with ML-KEM for the hybrid."""
    case = PUBLISHED["rfc9180-a1"]
    assert hpke.from_seed(unhex(case["private"]), "x25519")[1][1:].hex() == case["public"]
    for case in [*PUBLISHED["x-wing"], PUBLISHED["mlkem768-x25519"]]:
        public = hpke.from_seed(unhex(case["seed"]), "mlkem768-x25519")[1][1:]
        assert hashlib.sha256(public).hexdigest() == case["public_sha256"]


@pytest.mark.parametrize("case", WRAPPED, ids=lambda case: case["kind"])
def test_a_wrapped_key_opens_with_us_and_with_the_other_decoder(case: dict[str, str]) -> None:
    private, public, info = unhex(case["private"]), unhex(case["public"]), unhex(case["info"])
    assert hpke.from_seed(private[1:], hpke.kind_of(public)) == (private, public)
    for data in (unhex(case["wrapped"]), hpke.wrap(public, unhex(case["key"]), info)):
        assert hpke.unwrap(private, data, info).hex() == case["key"]
        assert unwrapped(data, private, info).hex() == case["key"]
