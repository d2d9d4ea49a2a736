"""Enrolment against an authority: what it certifies, and the lies it does not believe. Two software TPMs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.errors import BindingError, RefusedError, VaultError
from appliance.vault.certificates import authority, enrolment
from appliance.vault.certificates.enrolment import Attestation, Challenge, Issued, Level, Request, Sealed, Signed
from appliance.vault.certificates.identity import DEVICE, PENDING
from hardware.attestation import Attestor
from tests.enrolling import DAY, NOW, Box, office, tpm
from tests.software_tpm import SECURE_BOOT, measured
from tools.certification.office import Office


@pytest.fixture(scope="module")
def ours() -> Iterator[Attestor]:
    with tpm() as made:
        yield made


@pytest.fixture(scope="module")
def another() -> Iterator[Attestor]:
    with tpm() as made:
        yield made


@pytest.fixture
def ca(tmp_path: Path) -> Office:
    return office(tmp_path / "ca", 'least = "key"\n')


@pytest.fixture
def box(ca: Office, ours: Attestor) -> Box:
    return Box("press-2", ca, ours)


def altered(request: Request, **parts: Any) -> Request:
    """With another attestation; `parts` are fields of it."""
    assert request.attestation is not None
    return msgspec.structs.replace(request, attestation=msgspec.structs.replace(request.attestation, **parts))


def shown(request: Request) -> Attestation:
    assert request.attestation is not None
    return request.attestation


class TestWithTpm:
    def test_the_key_never_leaves_it_and_the_certificate_says_so(self, box: Box, ca: Office) -> None:
        identity = box.enrol(ca.token("press-2", NOW))
        assert (identity.name, identity.level, identity.in_tpm) == ("press-2", "key in TPM", True)
        assert b"TSS2 PRIVATE KEY" in box.keeper.get(DEVICE).reveal()
        assert [one.name for one in box.keeper.entries(PENDING)] == []
        assert [(one.name, one.level) for one in ca.issued()] == [("press-2", Level.KEY)]

    def test_the_key_signs_what_the_certificate_verifies(self, box: Box, ca: Office, ours: Attestor) -> None:
        identity = box.enrol(ca.token("press-2", NOW))
        key = box.keeper.get(DEVICE).reveal().partition(b"-----BEGIN CERTIFICATE-----")[0]
        public = identity.certificate.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(ours.sign(key, hashlib.sha256(b"hello").digest()), b"hello", ec.ECDSA(hashes.SHA256()))

    def test_it_is_renewed_without_a_token_by_what_it_is(self, box: Box, ca: Office) -> None:
        first = box.enrol(ca.token("press-2", NOW))
        box.clock.now += 21 * DAY
        assert box.identities.is_due()
        second = box.enrol()
        assert second.certificate.public_key() != first.certificate.public_key()
        assert not box.identities.is_due()

    def test_a_key_in_the_vault_of_an_attested_box_is_called_what_it_is(self, ca: Office, ours: Attestor) -> None:
        box = Box("press-2", ca, ours, Level.BOX)
        with pytest.raises(RefusedError, match="wants at least: key in TPM"):
            box.enrol(ca.token("press-2", NOW))
        (ca.folder / "rules.toml").write_text('least = "box"\n')
        assert box.enrol(ca.token("press-2", NOW)).level == "key in software, box with TPM"

    def test_who_is_not_expected_is_refused(self, box: Box) -> None:
        with pytest.raises(RefusedError, match="nobody knows this box"):
            box.enrol()

    def test_a_token_is_for_one_name_once_and_the_box_alone(self, box: Box, ca: Office, another: Attestor) -> None:
        token = ca.token("press-3", NOW)
        with pytest.raises(RefusedError, match="asks for the name 'press-2' and is 'press-3'"):
            box.enrol(token)
        right = ca.token("press-2", NOW)
        box.enrol(right)
        with pytest.raises(RefusedError, match="was used before"):
            Box("press-2", ca, another).enrol(right)

    def test_a_revoked_box_is_not_renewed(self, box: Box, ca: Office) -> None:
        box.enrol(ca.token("press-2", NOW))
        assert ca.revoke("press-2", NOW) == 1
        with pytest.raises(RefusedError, match="nobody knows this box"):
            box.enrol()

    def test_by_hand_the_answer_is_for_the_box_alone(self, box: Box, ca: Office, another: Attestor) -> None:
        request = box.ask(ca.token("press-2", NOW))
        answer = enrolment.decode_answer(enrolment.encode(ca.answer_by_hand(request, NOW)))
        assert isinstance(answer, Sealed)
        thief = Box("press-2", ca, another)
        thief.ask()
        with pytest.raises(BindingError):
            thief.identities.install(answer)
        assert box.identities.install(answer).level == "key in TPM"


class TestLies:
    """Each was sent by somebody who has a valid token, and may use a TPM."""

    def test_a_quote_of_another_box(self, box: Box, ca: Office, another: Attestor) -> None:
        request = box.ask(ca.token("press-2", NOW))
        bound = enrolment.binding(request.request, request.nonce)
        key = another.make_attestation_key()
        quote = another.quote(key, enrolment.REGISTERS, bound)
        forged = Signed(quote.statement.attested, quote.statement.signature)
        with pytest.raises(RefusedError, match="not signed by its attestation key"):
            ca.answer(altered(request, quote=forged), NOW)

    def test_a_request_swapped_after_the_quote(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        own = authority.new_key()
        swapped = enrolment.certificate_request("press-2", Level.KEY, own)
        with pytest.raises(RefusedError, match="about another request or nonce"):
            ca.answer(msgspec.structs.replace(request, request=swapped), NOW)

    def test_a_nonce_that_was_used(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        ca.answer(request, NOW)
        with pytest.raises(RefusedError, match="nonce is not one of this authority, or was used"):
            ca.answer(request, NOW)

    def test_a_nonce_that_is_swapped_for_a_fresh_one(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        with pytest.raises(RefusedError, match="about another request or nonce"):
            ca.answer(msgspec.structs.replace(request, nonce=ca.nonce(NOW)), NOW)

    def test_a_nonce_that_is_too_old(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        with pytest.raises(RefusedError, match="nonce"):
            ca.answer(request, NOW + DAY)

    def test_an_attestation_key_of_another_tpm(self, box: Box, ca: Office, another: Attestor) -> None:
        """All but the endorsement key is the liar's; only the other TPM could open the challenge."""
        request = box.ask(ca.token("press-2", NOW))
        challenge = ca.answer(altered(request, endorsement=another.endorsement().public), NOW)
        assert isinstance(challenge, Challenge)
        with pytest.raises(BindingError):
            box.identities.prove(challenge)
        bound = enrolment.binding(request.request, request.nonce)
        with pytest.raises(RefusedError, match="not of the endorsement key"):
            ca.conclude(enrolment.proof(bytes(32), bound), NOW)
        assert ca.issued() == []

    def test_the_other_tpm_does_not_open_it_for_a_key_that_is_not_its_own(
        self, box: Box, ca: Office, another: Attestor
    ) -> None:
        request = box.ask(ca.token("press-2", NOW))
        challenge = ca.answer(altered(request, endorsement=another.endorsement().public), NOW)
        assert isinstance(challenge, Challenge)
        with pytest.raises(OSError, match="credential"):
            another.activate(another.make_attestation_key(), challenge.credential, challenge.secret)

    def test_a_key_that_is_not_in_the_tpm(self, box: Box, ca: Office, ours: Attestor) -> None:
        """The statement is about a key that is there; the request asks for another one."""
        nonce = ca.nonce(NOW)
        box.identities.ask(nonce)
        account = box.identities.account()
        assert account is not None
        asked = enrolment.certificate_request("press-2", Level.KEY, authority.new_key())
        bound = enrolment.binding(asked, nonce)
        inside = ours.make_device_key()
        quote = ours.quote(account.attestation_key, enrolment.REGISTERS, bound)
        certified = ours.certify(account.attestation_key, inside, bound)
        lie = Attestation(
            ours.endorsement().public,
            ours.public(account.attestation_key),
            {str(number): value for number, value in quote.values.items()},
            Signed(quote.statement.attested, quote.statement.signature),
            b"",
            ours.public(inside),
            Signed(certified.attested, certified.signature),
        )
        token = enrolment.token_proof(bytes.fromhex(ca.token("press-2", NOW)), bound)
        with pytest.raises(RefusedError, match="the key in the request is not the one in the TPM"):
            ca.answer(Request(asked, nonce, lie, token=token), NOW)

    def test_no_statement_about_the_key_is_not_one(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        with pytest.raises(RefusedError, match="wants at least"):
            ca.answer(altered(request, certification=None), NOW)

    def test_a_quote_does_not_pass_for_a_statement_about_a_key(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        with pytest.raises(RefusedError, match="stands where another one should"):
            ca.answer(altered(request, certification=shown(request).quote), NOW)

    def test_a_key_that_signs_anything_is_no_attestation_key(self, box: Box, ca: Office, ours: Attestor) -> None:
        """Who has such a key signs whatever statement he likes."""
        request = box.ask(ca.token("press-2", NOW))
        with pytest.raises(RefusedError, match="would sign anything"):
            ca.answer(altered(request, attestation=ours.public(ours.make_device_key())), NOW)

    def test_an_endorsement_key_of_ones_own_making(self, box: Box, ca: Office) -> None:
        """A key whose private part is known would open the challenge anywhere."""
        request = box.ask(ca.token("press-2", NOW))
        public = bytearray(shown(request).endorsement)
        public[7] &= ~0x02  # fixedTPM
        with pytest.raises(RefusedError, match="not of the standard kind"):
            ca.answer(altered(request, endorsement=bytes(public)), NOW)

    def test_registers_that_are_not_those_of_the_quote(self, box: Box, ca: Office) -> None:
        request = box.ask(ca.token("press-2", NOW))
        registers = {**shown(request).registers, "7": bytes(32)}
        with pytest.raises(RefusedError, match="not those of the quote"):
            ca.answer(altered(request, registers=registers), NOW)

    def test_registers_that_the_rules_do_not_allow(self, box: Box, ca: Office) -> None:
        good = measured(SECURE_BOOT).hex()
        (ca.folder / "rules.toml").write_text(f'[registers]\n7 = ["{good}"]\n11 = ["{good}"]\n')
        with pytest.raises(RefusedError, match=r"PCR 11 is [0-9a-f]{64}, which the rules do not allow"):
            box.enrol(ca.token("press-2", NOW))
        (ca.folder / "rules.toml").write_text(f'[registers]\n7 = ["{good}"]\n')
        assert box.enrol(ca.token("press-2", NOW)).name == "press-2"

    def test_a_tpm_of_a_maker_who_is_not_known(self, box: Box, ca: Office) -> None:
        (ca.folder / "rules.toml").write_text("endorsers = true\n")
        with pytest.raises(RefusedError, match="no certificate of its maker"):
            box.enrol(ca.token("press-2", NOW))

    def test_a_certificate_of_another_tpm_s_endorsement_key(self, box: Box, ca: Office) -> None:
        maker = authority.found("a maker", NOW)
        (ca.folder / "endorsers" / "maker.pem").write_bytes(authority.pem(maker.certificate))
        certificate = authority.issue_client(maker, authority.new_key().public_key(), "ek", NOW)
        request = box.ask(ca.token("press-2", NOW))
        with pytest.raises(RefusedError, match="for another key"):
            ca.answer(altered(request, endorsement_certificate=certificate.public_bytes(Encoding.DER)), NOW)

    def test_an_answer_of_another_authority(self, box: Box, tmp_path: Path) -> None:
        other = office(tmp_path / "other", 'least = "software"\n')
        box.ask()
        answer = other.answer(Box("press-2", other, None, Level.SOFTWARE).ask(other.token("press-2", NOW)), NOW)
        assert isinstance(answer, Issued)
        with pytest.raises(VaultError, match="none of the authority that is trusted"):
            box.identities.install(answer)

    def test_a_certificate_for_another_key(self, box: Box, ca: Office) -> None:
        (ca.folder / "rules.toml").write_text('least = "software"\n')
        box.ask()
        answer = ca.answer(Box("press-2", ca, None, Level.SOFTWARE).ask(ca.token("press-2", NOW)), NOW)
        assert isinstance(answer, Issued)
        with pytest.raises(VaultError, match="for another key"):
            box.identities.install(answer)


@dataclass
class Soft:
    office: Office
    box: Box


class TestWithoutTpm:
    @pytest.fixture
    def soft(self, tmp_path: Path) -> Soft:
        ca = office(tmp_path / "ca", 'least = "software"\n')
        return Soft(ca, Box("press-2", ca, None, Level.SOFTWARE))

    def test_a_token_admits_it_and_the_certificate_says_how_weak_it_is(self, soft: Soft) -> None:
        identity = soft.box.enrol(soft.office.token("press-2", NOW))
        assert (identity.level, identity.in_tpm) == ("key in software", False)

    def test_the_authority_must_allow_it(self, soft: Soft) -> None:
        (soft.office.folder / "rules.toml").write_text("")
        with pytest.raises(RefusedError, match="key in software, and this authority wants at least"):
            soft.box.enrol(soft.office.token("press-2", NOW))

    def test_it_is_renewed_with_its_old_key_even_late(self, soft: Soft) -> None:
        soft.box.enrol(soft.office.token("press-2", NOW))
        soft.box.clock.now += 100 * DAY
        assert soft.box.enrol().name == "press-2"
        soft.box.clock.now += 200 * DAY
        with pytest.raises(RefusedError, match="too long ago"):
            soft.box.enrol()

    def test_an_old_certificate_without_its_key_renews_nothing(self, soft: Soft) -> None:
        soft.box.enrol(soft.office.token("press-2", NOW))
        thief = Box("press-2", soft.office, None, Level.SOFTWARE)
        own = thief.ask()
        theirs = soft.box.ask().previous
        assert theirs is not None
        with pytest.raises(RefusedError, match="not its own"):
            soft.office.answer(msgspec.structs.replace(own, previous=theirs), NOW)

    def test_a_revoked_one_is_not_renewed(self, soft: Soft) -> None:
        soft.box.enrol(soft.office.token("press-2", NOW))
        soft.office.revoke("press-2", NOW)
        with pytest.raises(RefusedError, match="was revoked"):
            soft.box.enrol()

    def test_the_token_itself_is_not_in_the_request(self, soft: Soft) -> None:
        token = soft.office.token("press-2", NOW)
        content = enrolment.encode(soft.box.ask(token))
        assert bytes.fromhex(token) not in content
        assert token.encode() not in content

    def test_a_refusal_keeps_the_identity_that_is_there(self, soft: Soft) -> None:
        first = soft.box.enrol(soft.office.token("press-2", NOW))
        with pytest.raises(RefusedError):
            soft.office.answer(soft.box.ask("00" * 32), NOW)
        current = soft.box.identities.current()
        assert current is not None
        assert current.certificate == first.certificate
