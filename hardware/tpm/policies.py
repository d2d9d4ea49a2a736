"""Digests of TPM policies (TPM 2.0 library, part 3, 23), computed without one. Pure.

    a release's signature    PolicyPCR(registers) signed, then PolicyAuthorize(name of the key that signs)
    an allow-list            PolicyPCR of each slot's registers, their PolicyOR in an index, PolicyAuthorizeNV(its name)
    writing an allow-list    PolicySigned(name of the writer's key)

Registers are those of the SHA-256 bank: number -> 32 bytes.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence

DIGEST_BYTES = 32
REGISTERS = 24  # of a bank
START = bytes(DIGEST_BYTES)  # of every policy session
_SHA256 = 0x000B
_POLICY_SIGNED = 0x160
_POLICY_AUTHORIZE = 0x16A
_POLICY_OR = 0x171
_POLICY_PCR = 0x17F
_POLICY_AUTHORIZE_NV = 0x192
_NV_WRITE = 0x137


def of_registers(values: Mapping[int, bytes]) -> bytes:
    return _extended(START, _POLICY_PCR, selection(values), hashlib.sha256(joined(values)).digest())


def selection(registers: Mapping[int, bytes]) -> bytes:
    """TPML_PCR_SELECTION of one bank."""
    bits = sum(1 << register for register in registers)
    return struct.pack(">IHB", 1, _SHA256, 3) + bits.to_bytes(3, "little")


def joined(values: Mapping[int, bytes]) -> bytes:
    return b"".join(values[register] for register in sorted(values))


def of_any(branches: Sequence[bytes]) -> bytes:
    return _extended(START, _POLICY_OR, *pair(branches))


def pair(branches: Sequence[bytes]) -> list[bytes]:
    """PolicyOR wants two branches or more."""
    return [*branches, branches[0]] if len(branches) == 1 else list(branches)


def of_signer(name: bytes) -> bytes:
    """PolicyAuthorize, with no reference: as ukify and systemd-measure sign."""
    return _extended(_extended(START, _POLICY_AUTHORIZE, name))


def of_writer(name: bytes) -> bytes:
    return _extended(_extended(START, _POLICY_SIGNED, name))


def of_list(name: bytes) -> bytes:
    return _extended(START, _POLICY_AUTHORIZE_NV, name)


def hashed(policy: bytes) -> bytes:
    """What a release's key signs: the policy and an empty reference."""
    return hashlib.sha256(policy).digest()


def call_of_write(name: bytes, content: bytes) -> bytes:
    """cpHash of TPM2_NV_Write of the whole content, by the index's own authorisation."""
    return _extended(b"", _NV_WRITE, name, name, struct.pack(">H", len(content)), content, struct.pack(">H", 0))


def extended(register: bytes, digest: bytes) -> bytes:
    """What a register holds once `digest` was extended into it."""
    return hashlib.sha256(register + digest).digest()


def _extended(policy: bytes, command: int | None = None, *parts: bytes) -> bytes:
    code = b"" if command is None else struct.pack(">I", command)
    return hashlib.sha256(policy + code + b"".join(parts)).digest()
