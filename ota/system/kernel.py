"""A unified kernel image: its sections, and what the TPM will have measured of it. Pure.

PCR 11 is what systemd-stub and the phases of the boot extend: for every section its name and its content, each with a
zero byte behind the name, in a fixed order; then the names of the phases. The release's maker signs the values it has
at each phase; `.pcrsig` holds the signatures, `.pcrpkey` the key. So whether a vault that is bound to signed values
opens under a release can be told before it is booted.
"""

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import pkcs7

from ota.errors import OtaError

MAX_BYTES = 512 << 20
MAX_SECTIONS = 96
MAX_SIGNATURES = 64
MAX_TEXT = 64 << 10

# As systemd-stub measures them (unified_sections of systemd 257); .pcrsig is not measured: it speaks of the rest.
MEASURED = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile",
    ".dtbauto", ".hwids",
)  # fmt: skip
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
_ROOTHASH = re.compile(r"(?:^|\s)roothash=([0-9a-f]{64})(?=\s|$)")


class KernelError(OtaError):
    """A file that is no unified kernel image, or one that breaks its format."""


@dataclass(frozen=True)
class Kernel:
    """`sections` by name; `signers`: SHA-256 of the certificates that came with its Secure Boot signatures."""

    sections: Mapping[str, memoryview]
    signers: frozenset[str]
    digest: str  # as Authenticode counts it: of the image without its signatures
    spoken_of: bool  # a signature names this digest; whether it is a good one is for the firmware and sbverify to say

    @property
    def command_line(self) -> str:
        return self._text(".cmdline")

    @property
    def roothash(self) -> str:
        """Of the root that it mounts; empty where it names none."""
        found = _ROOTHASH.search(self.command_line)
        return found[1] if found else ""

    @property
    def version(self) -> str:
        """IMAGE_VERSION of its .osrel; empty where it has none."""
        lines = self._text(".osrel").splitlines()
        found = [line.partition("=")[2].strip("\"'") for line in lines if line.startswith("IMAGE_VERSION=")]
        return found[-1] if found else ""

    @property
    def release_key(self) -> bytes:
        """PEM of the key that signs PCR 11; empty where there is none."""
        return bytes(self.sections.get(".pcrpkey", b"")).strip(b"\0\n ")

    def _text(self, name: str) -> str:
        return bytes(self.sections.get(name, b"")[:MAX_TEXT]).decode("utf-8", "replace").rstrip("\0\n ")


# ---- the file -------------------------------------------------------------------------------------------------------


def parse(raw: bytes | mmap) -> Kernel:
    """KernelError. Nothing is copied but what is asked for: a file may be mapped."""
    data = memoryview(raw)
    if len(data) > MAX_BYTES:
        raise KernelError(f"a kernel of more than {MAX_BYTES:,} bytes", "Fetch it again.")
    try:
        header, optional, count = _header(data)
        table = optional + struct.unpack_from("<H", data, header + 20)[0]
        sections = dict(_sections(data, table, count))
        signers, digest, spoken_of = _signatures(data, optional)
    except (struct.error, IndexError, ValueError) as error:
        raise KernelError(f"no PE file, or a damaged one: {error}", "Fetch it again.") from error
    if ".linux" not in sections:
        raise KernelError("a PE file without a kernel in it", "Fetch it again.")
    return Kernel(sections, signers, digest, spoken_of)


def _header(data: memoryview) -> tuple[int, int, int]:
    """Where the PE header and the optional header begin, and the number of sections."""
    if bytes(data[:2]) != b"MZ":
        raise ValueError("it does not begin with MZ")
    (header,) = struct.unpack_from("<I", data, 0x3C)
    if bytes(data[header : header + 4]) != b"PE\0\0":
        raise ValueError("it has no PE header")
    (count,) = struct.unpack_from("<H", data, header + 6)
    if not 0 < count <= MAX_SECTIONS:
        raise ValueError(f"{count} sections")
    return header, header + 24, count


def _sections(data: memoryview, table: int, count: int) -> Iterator[tuple[str, memoryview]]:
    """The first of each name: those of further profiles come behind them."""
    seen = set()
    for number in range(count):
        raw, size, _, stored, start = struct.unpack_from("<8sIIII", data, table + number * 40)
        name = raw.rstrip(b"\0").decode("ascii")
        if start + min(size, stored) > len(data):
            raise ValueError(f"section {name} lies beyond the end")
        if name not in seen:
            seen.add(name)
            yield name, data[start : start + min(size, stored)]


def _signatures(data: memoryview, optional: int) -> tuple[frozenset[str], str, bool]:
    (magic,) = struct.unpack_from("<H", data, optional)
    if magic not in (0x10B, 0x20B):
        raise ValueError(f"an optional header of kind {magic:#x}")
    entry = optional + (128 if magic == 0x10B else 144)  # of the certificate table
    start, size = struct.unpack_from("<II", data, entry)
    if start + size > len(data) or (size and start < entry):
        raise ValueError("signatures beyond the end")
    end = start if size else len(data)
    found = hashlib.sha256()
    for piece in (data[: optional + 64], data[optional + 68 : entry], data[entry + 8 : end]):
        found.update(piece)
    found.update(bytes(-(end) % 8) if not size else b"")
    table = bytes(data[start : start + size])
    return frozenset(_signers(table)), found.hexdigest(), found.digest() in table


def _signers(table: bytes) -> Iterator[str]:
    at = 0
    for _ in range(MAX_SIGNATURES):
        if at + 8 > len(table):
            return
        length, _revision, kind = struct.unpack_from("<IHH", table, at)
        if length < 8:
            raise ValueError("a signature without a length")
        if kind == 2:  # PKCS #7
            content = table[at + 8 : at + length]
            for certificate in pkcs7.load_der_pkcs7_certificates(content[: _der_bytes(content)]):
                yield certificate.fingerprint(hashes.SHA256()).hex()
        at += -(-length // 8) * 8


def _der_bytes(content: bytes) -> int:
    """Of the one value at its beginning: signatures are filled up to 8 bytes."""
    first = content[1]
    if first < 0x80:
        return 2 + first
    return 2 + (first & 0x7F) + int.from_bytes(content[2 : 2 + (first & 0x7F)], "big")


# ---- PCR 11 ---------------------------------------------------------------------------------------------------------


def predicted(kernel: Kernel, phases: int = len(PHASES)) -> bytes:
    """PCR 11 of the SHA-256 bank after so many of the boot's phases."""
    value = bytes(32)
    for name in MEASURED:
        if name in kernel.sections:
            value = _extended(value, name.encode() + b"\0")
            value = _extended(value, kernel.sections[name])
    for phase in PHASES[:phases]:
        value = _extended(value, phase.encode())
    return value


def _extended(value: bytes, content: bytes | memoryview) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(content).digest()).digest()


def policy_of(register: int, value: bytes) -> bytes:
    """The digest of a TPM policy that asks for one register's value, as PolicyPCR counts it."""
    selection = struct.pack(">IHB", 1, 0x000B, 3) + (1 << register).to_bytes(3, "little")
    return hashlib.sha256(bytes(32) + struct.pack(">I", 0x17F) + selection + hashlib.sha256(value).digest()).digest()


def signed_phases(kernel: Kernel) -> list[int]:
    """After how many phases the value of PCR 11 is one that the release's key has signed. KernelError where the
    signatures cannot be read."""
    if ".pcrsig" not in kernel.sections or not kernel.release_key:
        return []
    key = _key(kernel.release_key)
    signatures = dict(_entries(bytes(kernel.sections[".pcrsig"][:MAX_TEXT])))
    found = []
    for phases in range(1, len(PHASES) + 1):
        policy = policy_of(11, predicted(kernel, phases))
        if policy in signatures and _is_signed(key, policy, signatures[policy]):
            found.append(phases)
    return found


def _key(pem: bytes) -> RSAPublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise KernelError(f"the release's key is none: {error}", "Fetch it again.") from error
    if not isinstance(key, RSAPublicKey):
        raise KernelError("the release's key is no RSA key", "systemd signs PCR 11 with RSA.")
    return key


def _entries(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Policy and signature of each, of PCR 11 and nothing else."""
    try:
        for one in json.loads(text.rstrip(b"\0\n "))["sha256"][:MAX_SIGNATURES]:
            if one["pcrs"] == [11]:
                yield bytes.fromhex(one["pol"]), base64.b64decode(one["sig"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise KernelError(f"signatures of PCR 11 that are none: {error!r}", "Fetch it again.") from error


def _is_signed(key: RSAPublicKey, policy: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, policy, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
