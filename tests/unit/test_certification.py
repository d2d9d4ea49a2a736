"""What comes from a stranger, box or authority, is read within bounds or refused."""

import hashlib
import struct
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import VaultError
from appliance.vault.certificates import enrolment
from appliance.vault.certificates.authority import NAME
from appliance.vault.certificates.enrolment import Challenge, Issued, Level, Nonce, Proof, Request, Sealed
from tools.certification import structures

BOUND = hashlib.sha256(b"a request and a nonce").digest()
MESSAGES = [
    Nonce(bytes(32)),
    Request(b"request", bytes(32), token=bytes(32)),
    Proof(BOUND, bytes(32)),
    Challenge(b"credential", b"secret"),
    Issued(b"certificates"),
    Sealed(Challenge(b"credential", b"secret"), b"content"),
]


def public(attributes: int, scheme: bytes = b"\x00\x10") -> bytes:
    """TPMT_PUBLIC of a key that was just made."""
    point = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    x, y = (b"\0\x20" + number.to_bytes(32, "big") for number in (point.x, point.y))
    return b"\0\x23\0\x0b" + struct.pack(">I", attributes) + b"\0\0\0\x10" + scheme + b"\0\x03\0\x10" + x + y


def quoted(registers: bytes = b"\0\0\0\1\0\x0b\3\x80\x08\0") -> bytes:
    """TPMS_ATTEST of PCR 7 and 11."""
    signer, qualifying, digest = b"\0\x02ab", b"\0\x20" + BOUND, b"\0\x20" + bytes(32)
    return b"\xffTCG\x80\x18" + signer + qualifying + bytes(25) + registers + digest


class TestMessages:
    @pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
    def test_each_comes_back_as_it_was(self, message: enrolment.Struct) -> None:
        assert enrolment.decode(enrolment.encode(message), type(message)) == message

    @given(st.binary(max_size=300))
    def test_noise_is_refused(self, noise: bytes) -> None:
        for kind in (Nonce, Request, Proof, Issued):
            with pytest.raises(VaultError):
                enrolment.decode(noise, kind)

    @given(st.sampled_from(MESSAGES), st.data())
    def test_a_message_with_a_wrong_byte_is_another_one_or_refused(
        self, message: enrolment.Struct, data: st.DataObject
    ) -> None:
        content = bytearray(enrolment.encode(message))
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with suppress(VaultError):
            again = enrolment.decode(bytes(content), type(message))
            assert enrolment.decode(enrolment.encode(again), type(message)) == again

    @pytest.mark.parametrize("content", [b"[" * 60_000, b" " * 70_000, b'{"nonce":"' + b"A" * 60_000 + b'"}'])
    def test_depth_and_length_have_bounds(self, content: bytes) -> None:
        with pytest.raises(VaultError):
            enrolment.decode(content, Nonce)

    def test_a_later_format_is_refused_by_name(self) -> None:
        later = enrolment.encode(MESSAGES[1]).replace(b'"format":1', b'"format":2')
        with pytest.raises(VaultError, match="format"):
            enrolment.decode(later, Request)

    def test_a_sealed_answer_opens_with_its_secret_for_its_request(self) -> None:
        sealed = enrolment.seal(b"s" * 32, BOUND, b"certificates")
        assert enrolment.unseal(b"s" * 32, BOUND, sealed) == b"certificates"
        for secret, bound in ((b"t" * 32, BOUND), (b"s" * 32, bytes(32))):
            with pytest.raises(VaultError, match="none to this request"):
                enrolment.unseal(secret, bound, sealed)

    @pytest.mark.parametrize("name", ["", "Press", "a" * 65, "-a", "a/b", "a b", "a\n"])
    def test_a_name_that_no_box_may_have(self, name: str) -> None:
        assert not NAME.fullmatch(name)
        with pytest.raises(VaultError, match="cannot be this box's name"):
            enrolment.certificate_request(name, Level.SOFTWARE, ec.generate_private_key(ec.SECP256R1()))


class TestStructures:
    def test_a_key_is_read_with_its_name(self) -> None:
        content = public(structures.FIXED_TPM | structures.SIGN)
        found = structures.public(content)
        assert found.name == b"\0\x0b" + hashlib.sha256(content).digest()
        assert found.has(structures.FIXED_TPM | structures.SIGN)
        assert not found.has(structures.RESTRICTED | structures.SIGN)

    def test_a_quote_is_read_with_its_registers(self) -> None:
        found = structures.statement(quoted())
        assert (found.kind, found.qualifying, found.registers) == (structures.QUOTED, BOUND, (7, 11))

    @pytest.mark.parametrize(
        "registers",
        [
            b"\0\0\0\1\0\x04\3\x80\x08\0",  # of SHA-1
            b"\0\0\0\0",  # of no bank
            b"\0\0\0\1\0\x0b\xff" + b"\xff" * 255,
        ],
    )
    def test_a_quote_of_other_registers_is_refused(self, registers: bytes) -> None:
        with pytest.raises(VaultError):
            structures.statement(quoted(registers))

    def test_what_no_tpm_has_generated_is_refused(self) -> None:
        with pytest.raises(VaultError, match="no TPM made"):
            structures.statement(b"\0" + quoted()[1:])

    @given(st.binary(max_size=300))
    def test_noise_is_refused(self, noise: bytes) -> None:
        for read in (structures.public, structures.statement):
            with pytest.raises(VaultError):
                read(noise)

    @given(st.integers(0, 200))
    def test_whatever_is_cut_short_or_too_long_is_refused(self, length: int) -> None:
        for content, read in ((public(0), structures.public), (quoted(), structures.statement)):
            wrong = content[:length] if length < len(content) else content + b"\0"
            with pytest.raises(VaultError):
                read(wrong)

    def test_a_point_that_is_not_on_the_curve_is_refused(self) -> None:
        with pytest.raises(VaultError, match="not on its curve"):
            structures.public(public(0)[:-32] + b"\1" * 32)
