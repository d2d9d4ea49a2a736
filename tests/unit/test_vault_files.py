"""Files that were written when format 1 was new: this release reads them, and so does a reader that shares nothing with
it but the README's words."""

import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.vault import backup
from appliance.vault.recovery import RecoveryKey
from tests.vaults import Box, Place, Tally, held

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "vault" / "files.json").read_text())


@pytest.fixture(params=CASES, ids=[case["suite"] for case in CASES])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def holds(case: dict[str, Any]) -> dict[str, bytes]:
    return {name: bytes.fromhex(content) for name, content in case["holds"].items()}


def standing(case: dict[str, Any]) -> Place:
    place = Place()
    place.box, place.tally = Box(root=bytes.fromhex(case["board"])), Tally(12)
    place.lay(bytes.fromhex(case["file"]), bytes.fromhex(case["file"]))
    return place


def test_the_box_opens_it(case: dict[str, Any]) -> None:
    with standing(case).open() as vault:
        assert held(vault) == holds(case)
        assert [one.version for one in vault.entries()] == [2, 1, 1]
        assert (vault.status().suite, vault.status().warnings) == (case["suite"], ())


def test_the_recovery_key_opens_it(case: dict[str, Any]) -> None:
    with standing(case).recover(Box(), RecoveryKey.read(case["recovery"])) as vault:
        assert held(vault) == holds(case)


def test_the_backup_is_restored(case: dict[str, Any]) -> None:
    place, key = Place(), RecoveryKey.read(case["recovery"])
    data, ticket = bytes.fromhex(case["backup"]), bytes.fromhex(case["ticket"])
    backup.restore(place.folder, data, key, ticket, "there", place.box, None, place.now, disk=place.disk)
    place.tally = None
    with place.open() as vault:
        assert held(vault) == holds(case)


# ---- another reader -------------------------------------------------------------------------------------------------


def expand(key: bytes, salt: bytes, use: str, info: bytes, length: int) -> bytes:
    label = f"millwright/1/aes-256-gcm/{use}".encode() + b"\0"
    return HKDF(hashes.SHA256(), length, salt or None, label + info).derive(key)


def unseal(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    okm = expand(key, sealed[:32], "seal", aad, 76)
    assert okm[:32] == sealed[32:64]
    return AESGCM(okm[32:64]).decrypt(okm[64:], sealed[64:], aad)


def frames(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(content):
        mark, kind, length, _ = struct.unpack_from(">4scII", content, at)
        assert mark == b"\x9bMWV"
        found.append((kind, content[at + 13 : at + 13 + length]))
        at += 13 + length
    return found


def test_another_reader_reads_it() -> None:
    case = next(case for case in CASES if case["suite"] == "aes-256-gcm")
    parts = frames(bytes.fromhex(case["file"]))
    body, mac = cbor2.loads(parts[0][1])
    form, purpose, vault, suite, epoch, generation, *_, bindings, _recipients, sealed = cbor2.loads(body)
    blob = bindings[0][1]
    kek = AESGCM(bytes.fromhex(case["board"])).decrypt(blob[:12], blob[12:], b"board")
    derived = {
        use: expand(kek, b"", "derive", b"millwright/vault/1/" + use + b"\0" + vault, 32) for use in (b"root", b"index")
    }
    assert hmac.digest(expand(derived[b"root"], b"", "mac", b"", 32), body, "sha256") == mac
    aad = cbor2.dumps([b"millwright/vault/1/index", form, purpose, vault, suite, epoch, generation])
    _voucher, spaces, secrets = cbor2.loads(unseal(derived[b"index"], sealed, aad))
    keys = {name.decode(): (epoch, key) for name, epoch, key in spaces}
    records = {hashlib.sha256(payload).digest(): payload for kind, payload in parts if kind == b"S"}
    found = {}
    for raw, version, _at, size, digest in secrets:
        name = raw.decode()
        epoch, key = keys[name.partition("/")[0]]
        _, _, _, *seal = cbor2.loads(records[digest])
        place = cbor2.dumps(["millwright/record", 1, suite, vault, name, version, epoch])
        found[name] = unseal(key, b"".join(seal), place)
        assert len(found[name]) == size
    assert found == holds(case)
