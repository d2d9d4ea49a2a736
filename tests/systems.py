"""Releases of an operating system for tests: kernels in PE files made on the spot, roots, and what splits them."""

import base64
import datetime
import hashlib
import json
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from ota.osdelta import form, verity
from ota.osdelta.form import BLOCK
from ota.system import kernel as kernels
from ota.system.making import Split

UUID = "01234567-89ab-4cde-8f01-23456789abcd"
ALIGNMENT = 512


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def certificate(key: rsa.RSAPrivateKey, name: str) -> x509.Certificate:
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key()).serial_number(7)
    span = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=3650))
    return span.sign(key, hashes.SHA256())


@dataclass
class Maker:
    """Who builds and signs releases."""

    release: rsa.RSAPrivateKey = field(default_factory=rsa_key)
    boot: rsa.RSAPrivateKey = field(default_factory=rsa_key)
    boot_name: str = "the maker"
    phases: tuple[int, ...] = (1, 2, 3, 4)

    def kernel(self, version: str, roothash: str) -> bytes:
        pem = self.release.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        sections = {
            ".osrel": f'ID=millwright\nIMAGE_VERSION="{version}"\n'.encode(),
            ".cmdline": f"ro roothash={roothash} panic=10\0".encode(),
            ".linux": random.Random(version).randbytes(9000),
            ".initrd": random.Random(1).randbytes(50_000),
            ".pcrpkey": pem,
        }
        measured = kernels.parse(pe(sections))
        sections[".pcrsig"] = json.dumps({"sha256": [self._signed(measured, one) for one in self.phases]}).encode()
        return self._sealed(pe(sections))

    def _signed(self, kernel: kernels.Kernel, phases: int) -> dict[str, object]:
        policy = kernels.policy_of(11, kernels.predicted(kernel, phases))
        signature = self.release.sign(policy, padding.PKCS1v15(), hashes.SHA256())
        return {"pcrs": [11], "pkfp": "", "pol": policy.hex(), "sig": base64.b64encode(signature).decode()}

    def _sealed(self, bare: bytes) -> bytes:
        """With a signature that speaks of it; a real one has another form inside."""
        digest = bytes.fromhex(kernels.parse(bare).digest)
        signer = (
            pkcs7.PKCS7SignatureBuilder()
            .set_data(digest)
            .add_signer(certificate(self.boot, self.boot_name), self.boot, hashes.SHA256())
        )
        content = signer.sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
        table = struct.pack("<IHH", 8 + len(content), 0x0200, 2) + content
        table += bytes(-len(table) % 8)
        optional = struct.unpack_from("<I", bare, 0x3C)[0] + 24
        sealed = bytearray(bare + bytes(-len(bare) % 8))
        struct.pack_into("<II", sealed, optional + 144, len(sealed), len(table))
        return bytes(sealed) + table

    def split(self, folder: Path, version: str, root: bytes) -> Split:
        """As an image builder leaves the parts of an image."""
        folder.mkdir(parents=True, exist_ok=True)
        own = hashlib.sha256(version.encode()).hexdigest()[:12]
        parts = Split(
            folder / f"millwright_{version}.root-x86-64.{own}.raw",
            folder / f"millwright_{version}.root-x86-64-verity.{own}.raw",
            folder / f"millwright_{version}.efi",
        )
        parts.root.write_bytes(root)
        roothash = verity.build(parts.root, form.Tree(len(root) // BLOCK, "ab" * 32, UUID), parts.tree, 1 << 20)
        parts.kernel.write_bytes(self.kernel(version, roothash))
        return parts


def pe(sections: dict[str, bytes]) -> bytes:
    """A PE32+ file with these sections and nothing to run."""
    head = 0x80
    optional = struct.pack("<H", 0x20B) + bytes(238)
    start = -(-(head + 24 + len(optional) + 40 * len(sections)) // ALIGNMENT) * ALIGNMENT
    table, body = b"", b""
    for name, content in sections.items():
        stored = content + bytes(-len(content) % ALIGNMENT)
        where = (len(content), start + len(body), len(stored), start + len(body), 0, 0, 0, 0, 0x40000040)
        table += name.encode().ljust(8, b"\0") + struct.pack("<IIIIIIHHI", *where)
        body += stored
    dos = b"MZ" + bytes(0x3A) + struct.pack("<I", head) + bytes(head - 0x40)
    header = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x2022)
    return (dos + header + optional + table).ljust(start, b"\0") + body


def root(changed: int = 0) -> bytes:
    """A root file system whose package number 3 has a release of its own."""
    packages = [random.Random(number).randbytes(BLOCK * 20) for number in range(40)]
    packages[3] = packages[3][:500] + bytes([changed]) + packages[3][501:] + random.Random(changed).randbytes(BLOCK)
    return b"".join(packages) + bytes(BLOCK * 200)
