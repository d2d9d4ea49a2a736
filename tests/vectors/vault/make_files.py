"""Writes files.json: a vault's file, a backup and a ticket of each suite. They hold random salts and keys, so that no
second run gives the same: made once for each format, and kept, so that every later release is seen to read them.

    PYTHONPATH=. .venv/bin/python tests/vectors/vault/make_files.py
"""

import json
from pathlib import Path
from typing import Any

from appliance.vault import backup, suites
from appliance.vault.recovery import RecoveryKey
from appliance.vault.secret import Secret
from tests.vaults import Box, Place

FILE = Path(__file__).with_name("files.json")
CONTENT = {"mqtt/plant": b"correct horse battery staple", "tls/broker/key": bytes(range(256)), "x/y": b""}
FOR_EVER = (1 << 62) - 1


def _case(suite: str) -> dict[str, Any]:
    place = Place()
    place.box = Box(root=bytes(range(32)))
    with place.make(CONTENT, suite, RecoveryKey.new().recipient("office", "mlkem768-x25519")) as vault:
        vault.put("mqtt/plant", Secret(CONTENT["mqtt/plant"]))
        data = vault.backup()
    file, _ = place.copies()
    assert file is not None
    return {
        "suite": suite,
        "board": place.box.root.hex(),
        "recovery": place.key.printed(),
        "holds": {name: content.hex() for name, content in CONTENT.items()},
        "file": file.hex(),
        "backup": data.hex(),
        "ticket": backup.ticket(data, place.key, "there", place.now(), FOR_EVER).hex(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps([_case(suite.name) for suite in suites.SUITES], indent=1) + "\n")
