"""Writes this folder's records.json and, where it is asked to, wrapped.json:

    .venv/bin/python tests/vectors/vault/make.py [wrapped]

Records come out the same each time: keys, ids and salts are digests of a case's name. A wrapped key never does, since
it holds a fresh encapsulation: those in wrapped.json were made once and stay.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from appliance.vault import envelope, hpke
from appliance.vault.envelope import MAX_NUMBER, Place
from appliance.vault.suites import SUITES, Suite

FOLDER = Path(__file__).parent
_PLACES = {
    "short": ("mqtt/plant", 1, 0, b"correct horse battery staple"),
    "empty": ("mqtt/plant", 2, 0, b""),
    "one block": ("tls/broker/key", 23, 24, bytes(range(16))),
    "long heads": ("a" * 64 + "/" + "b" * 64, 65536, 256, b"\x00\xff" * 150),
    "largest numbers": ("x/y", MAX_NUMBER, MAX_NUMBER, b"last"),
    "not ascii": ("wörter/密码", 7, 4294967296, "straße 密码".encode()),
}


def _bytes(what: str, size: int = 32) -> bytes:
    return hashlib.sha256(f"millwright vault vector: {what}".encode()).digest()[:size]


def _record(suite: Suite, case: str) -> dict[str, Any]:
    name, version, epoch, plaintext = _PLACES[case]
    key, salt, vault = (_bytes(f"{suite.name} {case} {part}") for part in ("key", "salt", "vault"))
    place = Place(vault[:16], name, version, epoch)
    return {
        "case": case,
        "suite": suite.name,
        "key": key.hex(),
        "vault": place.vault.hex(),
        "name": name,
        "version": version,
        "epoch": epoch,
        "plaintext": plaintext.hex(),
        "record": envelope.seal_with_salt(suite, key, place, plaintext, salt).hex(),
    }


def _derived(suite: Suite) -> dict[str, str]:
    """Of one key: what it derives for a purpose, with and without a salt, and its code over some bytes."""
    key = _bytes(f"{suite.name} derive")
    return {
        "suite": suite.name,
        "key": key.hex(),
        "derive(b'purpose')": suite.derive(key, b"purpose").hex(),
        "derive(b'purpose', 64, b'salt')": suite.derive(key, b"purpose", 64, b"salt").hex(),
        "mac(b'data')": suite.mac(key, b"data").hex(),
    }


def _refused() -> list[dict[str, str]]:
    """The first record of all, harmed: what is wrong with it, and it."""
    good = bytes.fromhex(_record(SUITES[0], "short")["record"])
    salt = good.index(b"\x58\x20")
    body = salt + 2 * 34
    harmed = {
        "format 0": good[:1] + b"\0" + good[2:],
        "format 2": good[:1] + b"\2" + good[2:],
        "suite 0": good[:2] + b"\0" + good[3:],
        "suite 2, sealed with 1": good[:2] + b"\2" + good[3:],
        "suite 3": good[:2] + b"\3" + good[3:],
        "epoch 1, sealed in 0": good[:3] + b"\1" + good[4:],
        "an epoch of two bytes where one does": good[:3] + b"\x18\0" + good[4:],
        "a negative epoch": good[:3] + b"\x20" + good[4:],
        "an epoch that is a float": good[:3] + b"\xf9\0\0" + good[4:],
        "an indefinite array": b"\x9f" + good[1:] + b"\xff",
        "an array of five": b"\x85" + good[1:],
        "an array of seven": b"\x87" + good[1:] + b"\0",
        "a tag around it": b"\xc1" + good,
        "a length of two bytes where one does": good[:salt] + b"\x59\0\x20" + good[salt + 2 :],
        "a salt that is text": good[:salt] + b"\x78\x20" + good[salt + 2 :],
        "a salt of 31 bytes": good[:salt] + b"\x58\x1f" + good[salt + 3 :],
        "another salt": good[: salt + 2] + b"\0" + good[salt + 3 :],
        "another commitment": good[: salt + 36] + b"\0" + good[salt + 37 :],
        "no room for a tag": good[:body] + b"\x4f" + good[-15:],
        "another tag": good[:-1] + bytes((good[-1] ^ 1,)),
        "cut short": good[:-1],
        "a byte too many": good + b"\0",
        "two records": good + good,
        "a length beyond its end": good[:body] + b"\x5a\xff\xff\xff\xff" + good[body + 2 :],
        "nothing": b"",
    }
    return [{"why": why, "record": record.hex()} for why, record in harmed.items()]


def records() -> dict[str, Any]:
    return {
        "records": [_record(suite, case) for suite in SUITES for case in _PLACES],
        "derived": [_derived(suite) for suite in SUITES],
        "refused": _refused(),
    }


def wrapped() -> list[dict[str, str]]:
    made = []
    for kind in hpke.KINDS:
        private, public = hpke.from_seed(_bytes(f"{kind} seed"), kind)
        key, info = _bytes(f"{kind} key"), f"for the {kind} vector".encode()
        made.append(
            {
                "kind": kind,
                "private": private.hex(),
                "public": public.hex(),
                "key": key.hex(),
                "info": info.hex(),
                "wrapped": hpke.wrap(public, key, info).hex(),
            }
        )
    return made


def text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (FOLDER / "records.json").write_text(text(records()), encoding="utf-8")
    if "wrapped" in sys.argv[1:]:
        (FOLDER / "wrapped.json").write_text(text(wrapped()), encoding="utf-8")
