"""A TPM in software (swtpm), a process of the test's own: boots, power cuts, and releases that are signed.

What is proven with it is proven on swtpm, not on a real TPM.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from hardware.tpm import Release, Tpm, policies

PATIENCE_S = 30.0
SECURE_BOOT = hashlib.sha256(b"Secure Boot: on").digest()  # measured into PCR 7


@dataclass
class SoftwareTpm:
    """`folder` has a short name: a socket's path has 107 bytes at most."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = field(default=0)

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self.folder}/s"

    def start(self) -> None:
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        for name in ("s", "s.ctrl"):
            (self.folder / name).unlink(missing_ok=True)
        self.starts += 1
        log = self.folder / f"log{self.starts % 2}"
        log.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *(program(), "socket", "--tpm2", "--tpmstate", f"dir={state}", "--log", f"file={log},level=1"),
                *("--server", f"type=unixio,path={self.folder}/s", "--ctrl", f"type=unixio,path={self.folder}/s.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ]
        )
        self._ready()

    def _ready(self) -> None:
        """The TPM answers once it is connected to: the first answer is waited for."""
        from hardware.tpm import link

        def ask() -> None:
            opened = link.connect(self.tcti)
            opened.esys.get_random(bytes_requested=1)
            opened.close()

        until(lambda: succeeds(ask, OSError, RuntimeError), self.process)

    def power_cut(self) -> None:
        """As if the plug were pulled: no TPM2_Shutdown, nothing is flushed."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def boot(self, release: bytes = b"", firmware: bytes = SECURE_BOOT) -> None:
        """A reset, then what a firmware and a release measure."""
        if self.process is not None and self.process.poll() is None:
            self.power_cut()
        self.start()
        tpm = Tpm(self.tcti)
        with tpm.session():
            tpm.extend(7, firmware)
            if release:
                tpm.extend(11, release)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.power_cut()
        shutil.rmtree(self.folder)


def make() -> SoftwareTpm:
    """Skips the test where there is no swtpm or no library that speaks to it."""
    program()
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed", exc_type=ImportError)
    return SoftwareTpm(Path(tempfile.mkdtemp(prefix="mw-tpm-")))


def program() -> str:
    found = shutil.which("swtpm")
    if found is None:
        pytest.skip("swtpm is not installed")
    return found


# ---- releases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signer:
    """Who signs releases, as ukify does."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def pem(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, policy: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(policy, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(policy, ec.ECDSA(hashes.SHA256()))

    def entry(self, release: bytes) -> dict[str, object]:
        policy = policies.of_registers({11: measured(release)})
        return {
            "pcrs": [11],
            "pkfp": "00" * 32,
            "pol": policy.hex(),
            "sig": base64.b64encode(self.sign(policy)).decode(),
        }

    def publish(self, root: Path, *releases: bytes) -> Release:
        """What the system of these releases finds in its /run."""
        write(root, self.pem, [self.entry(release) for release in releases])
        return Release(root)


def write(root: Path, pem: bytes, entries: list[dict[str, object]]) -> None:
    folder = root / "run/systemd"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tpm2-pcr-public-key.pem").write_bytes(pem)
    (folder / "tpm2-pcr-signature.json").write_text(json.dumps({"sha256": entries}))


def measured(digest: bytes) -> bytes:
    """A register that was extended once."""
    return policies.extended(bytes(32), digest)


def state(release: bytes, firmware: bytes = SECURE_BOOT) -> Mapping[int, bytes]:
    """What a slot of the allow-list says of a release."""
    return {7: measured(firmware), 11: measured(release)}


# ---- waiting ----------------------------------------------------------------------------------------------------


def succeeds(action: Callable[[], object], *failures: type[Exception]) -> bool:
    try:
        action()
    except failures:
        return False
    return True


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    import time

    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert process is None or process.poll() is None, "swtpm ended"
        assert time.monotonic() < deadline, "nothing came of it"
        os.sched_yield()
