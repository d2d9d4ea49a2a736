"""What the release that was booted says of itself: its key, and which values of PCR 11 the key has signed.

systemd-stub and ukify put both into the running system, as PEM and as JSON: {"sha256": [{"pcrs": [11], "pkfp": ...,
"pol": digest of the policy, hex, "sig": over that digest, base64}, ...]}, an entry for each phase of the boot.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.tpm.errors import RefusedError

FOLDERS = ("run/systemd", "etc/systemd", "usr/lib/systemd", ".extra")
KEY = "tpm2-pcr-public-key.pem"
SIGNATURES = "tpm2-pcr-signature.json"
REGISTER = 11
MAX_FILE_BYTES = 64 << 10
MAX_SIGNATURES = 64
MAX_SIGNATURE_BYTES = 512


@dataclass(frozen=True)
class Signature:
    policy: bytes  # 32 bytes, of PolicyPCR
    signature: bytes


@dataclass(frozen=True)
class Release:
    """Read anew at each use: an update replaces the files."""

    root: Path = Path("/")

    def key(self) -> bytes:
        """PEM; empty where the system that runs is no signed release."""
        return self._read(KEY)

    def signatures(self) -> list[Signature]:
        """RefusedError where the file is not what it should be."""
        content = self._read(SIGNATURES)
        return list(_parsed(content)) if content else []

    def _read(self, name: str) -> bytes:
        for folder in FOLDERS:
            try:
                with (self.root / folder / name).open("rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if len(content) > MAX_FILE_BYTES:
                raise RefusedError(f"/{folder}/{name} has more than {MAX_FILE_BYTES} bytes")
            return content
        return b""


def _parsed(content: bytes) -> Iterator[Signature]:
    try:
        entries = json.loads(content)["sha256"][:MAX_SIGNATURES]
        for entry in entries:
            if entry["pcrs"] == [REGISTER]:
                yield _signature(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"the release's {SIGNATURES} is not in order: {error!r}") from error


def _signature(entry: dict[str, Any]) -> Signature:
    try:
        policy, signature = bytes.fromhex(entry["pol"]), base64.b64decode(entry["sig"], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(policy) != 32 or not 0 < len(signature) <= MAX_SIGNATURE_BYTES:
        raise ValueError("a policy or a signature of a strange length")
    return Signature(policy, signature)
