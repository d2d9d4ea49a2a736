"""A box's TPM, asked for what an authority wants to see. swtpm, a TPM in software."""

import hashlib
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.errors import RefusedError
from appliance.vault.certificates import authority
from hardware.attestation import CERTIFICATE, Attestor
from hardware.tpm import DamagedError, Tpm
from tests import software_tpm
from tests.enrolling import NOW, Box, office, tpm
from tests.software_tpm import SoftwareTpm
from tools.certification import structures


@pytest.fixture(scope="module")
def attestor() -> Iterator[Attestor]:
    with tpm() as made:
        yield made


@pytest.fixture
def machine() -> Iterator[SoftwareTpm]:
    made = software_tpm.make()
    made.boot(b"r" * 32)
    yield made
    made.close()


def provisioned(machine: SoftwareTpm, content: bytes) -> Attestor:
    """As its maker would: a certificate in the TPM, and zeros behind it."""
    from tpm2_pytss.constants import ESYS_TR, TPMA_NV
    from tpm2_pytss.types import TPM2B_MAX_NV_BUFFER

    from hardware.tpm import indices

    made = Tpm(machine.tcti)
    with made.session() as link:
        attributes = TPMA_NV.OWNERWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
        indices.define(link, CERTIFICATE, attributes, b"", len(content))
        with indices.at(link, CERTIFICATE) as index:
            for offset in range(0, len(content), 256):
                part = TPM2B_MAX_NV_BUFFER(content[offset : offset + 256])
                link.esys.nv_write(nv_index=index, data=part, offset=offset, auth_handle=ESYS_TR.OWNER)
    return Attestor(made)


def test_the_endorsement_key_is_the_standard_one_and_always_the_same(attestor: Attestor) -> None:
    found = attestor.endorsement()
    public = structures.public(found.public)
    assert (public.attributes, public.policy) == (structures.ENDORSEMENT_ATTRIBUTES, structures.ENDORSEMENT_POLICY)
    assert attestor.endorsement() == found
    assert found.certificate == b""


def test_keys_survive_a_reboot_and_nothing_else_of_the_tpm_opens_them(machine: SoftwareTpm, attestor: Attestor) -> None:
    ours = Attestor(Tpm(machine.tcti))
    key = ours.make_device_key()
    machine.boot(b"another" * 4 + b"more")
    public = structures.public(ours.public(key)).key
    digest = hashlib.sha256(b"hello").digest()
    public.verify(ours.sign(key, digest), b"hello", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(DamagedError):
        attestor.sign(key, digest)


def test_a_quote_is_of_the_registers_as_they_are(machine: SoftwareTpm) -> None:
    ours, nonce = Attestor(Tpm(machine.tcti)), hashlib.sha256(b"nonce").digest()
    key = ours.make_attestation_key()
    before = ours.quote(key, [7, 11], nonce)
    Tpm(machine.tcti).extend(11, b"x" * 32)
    after = ours.quote(key, [7, 11], nonce)
    assert before.values[7] == after.values[7]
    assert before.values[11] != after.values[11]
    for quote in (before, after):
        said = structures.statement(quote.statement.attested)
        values = b"".join(quote.values[register] for register in said.registers)
        assert (said.registers, said.qualifying) == ((7, 11), nonce)
        assert said.digest == hashlib.sha256(values).digest()


def test_an_attestation_key_signs_nothing_but_the_tpms_own_words(attestor: Attestor) -> None:
    with pytest.raises(OSError, match="device key"):
        attestor.sign(attestor.make_attestation_key(), hashlib.sha256(b"a lie").digest())


def test_a_credential_opens_for_its_key_alone(attestor: Attestor) -> None:
    ours, other, secret = attestor.make_attestation_key(), attestor.make_attestation_key(), structures.new_secret()
    endorsement = structures.public(attestor.endorsement().public)
    credential, wrapped = structures.make_credential(endorsement, structures.public(attestor.public(ours)).name, secret)
    assert attestor.activate(ours, credential, wrapped) == secret
    for key, blob in ((other, credential), (ours, credential[:-1] + bytes([credential[-1] ^ 1])), (ours, b"noise")):
        with pytest.raises(OSError, match="credential"):
            attestor.activate(key, blob, wrapped)


@pytest.mark.parametrize(
    "noise", [b"", b"noise", b"-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n"]
)
def test_noise_is_no_key(attestor: Attestor, noise: bytes) -> None:
    with pytest.raises(DamagedError):
        attestor.public(noise)


def test_a_makers_certificate_is_read_and_decides_where_the_rules_want_it(
    machine: SoftwareTpm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    maker = authority.found("a maker of TPMs", NOW)
    public = structures.public(Attestor(Tpm(machine.tcti)).endorsement().public)
    certificate = authority.issue_client(maker, public.key, "a TPM", NOW, 10_000)
    der = certificate.public_bytes(Encoding.DER)
    ours = provisioned(machine, der + bytes(200))
    assert x509.load_der_x509_certificate(ours.endorsement().certificate) == certificate
    ca = office(tmp_path_factory.mktemp("ca"), "endorsers = true\n")
    box = Box("press-2", ca, ours)
    with pytest.raises(RefusedError, match="who is not known here"):
        box.enrol(ca.token("press-2", NOW))
    (ca.folder / "endorsers" / "maker.pem").write_bytes(authority.pem(maker.certificate))
    assert box.enrol(ca.token("press-2", NOW)).level == "key in TPM"
