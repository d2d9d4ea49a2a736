"""The vault's TPM backend over a TPM in software: what opens, what does not, and what is said then.

Proven on swtpm, not on a real TPM.
"""

import random
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appliance.errors import BindingError, SealError, VaultError
from appliance.vault import measured
from appliance.vault.secret import Secret
from hardware.tpm import policies
from tests import software_tpm
from tests.software_tpm import SECURE_BOOT, Signer, SoftwareTpm, state
from tests.tpm_site import ELSEWHERE, FIRST, KEY, SECOND, THIRD, Site

# ---- it opens ---------------------------------------------------------------------------------------------------


def test_it_opens_after_a_restart_and_after_a_power_cut(site: Site) -> None:
    blob = site.sealed()
    assert site.opens(blob)
    site.boot(FIRST)
    assert site.opens(blob)


def test_an_rsa_key_signs_as_well(box: SoftwareTpm) -> None:
    site = Site(box, Signer(rsa.generate_private_key(65537, 2048)))
    site.boot(FIRST)
    blob = site.sealed()
    assert measured.parse(blob)[0].signed
    assert site.opens(blob)


def test_a_key_with_leading_zeros_signs_as_well(box: SoftwareTpm) -> None:
    """One in 128 has them, and libraries like to leave them out."""
    number = next(
        number
        for number in range(1, 9999)
        if ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers().y < 1 << 248
    )
    site = Site(box, Signer(ec.derive_private_key(number, ec.SECP256R1())))
    site.boot(FIRST)
    assert site.opens(site.sealed())


def test_without_a_signed_release_it_is_bound_to_secure_boot_alone_and_says_so(laptop: Site) -> None:
    blob = laptop.sealed()
    assert measured.parse(blob)[0].release_key == b""
    assert any("PCR 11" in line for line in laptop.backend().promise.does_not)
    laptop.boot(SECOND)
    assert laptop.opens(blob)
    laptop.boot(SECOND, firmware=ELSEWHERE)
    assert "PCR 7" in laptop.refusal(blob).message


def test_a_signed_release_asks_for_the_stronger_binding(laptop: Site) -> None:
    blob = laptop.sealed()
    signed = Site(laptop.machine, Signer())
    signed.boot(FIRST)
    backend = signed.backend()
    opened = backend.open(blob)
    assert opened.reseal
    assert "release" in opened.warnings[0]
    again = backend.seal(opened.key)
    assert measured.parse(again)[0].signed
    assert not signed.backend().open(again).reseal
    assert signed.opens(blob)  # until it is let go


def test_a_release_with_a_key_and_no_signature_seals_nothing_and_leaves_nothing(site: Site) -> None:
    site.boot(SECOND)
    software_tpm.write(site.root, site.signer.pem if site.signer else b"", [])
    with pytest.raises(BindingError, match="PCR 11"):
        site.sealed()
    assert site.tpm.lists() == []


def test_a_key_is_rotated_without_another_allow_list(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    other = bytes(reversed(KEY))
    again = backend.seal(Secret(other))
    assert len(site.tpm.lists()) == 1
    assert site.opens(blob)
    assert site.backend().open(again).key.reveal() == other


# ---- the box ----------------------------------------------------------------------------------------------------


def test_a_blob_on_another_tpm_is_refused(site: Site, other_box: SoftwareTpm) -> None:
    blob = site.sealed()
    thief = Site(other_box, site.signer)
    thief.boot(FIRST)
    refusal = thief.refusal(blob)
    assert "another TPM" in refusal.message
    assert "recovery key" in refusal.remedy


def test_a_tpm_that_was_cleared_asks_for_the_recovery_key(site: Site) -> None:
    from tpm2_pytss.constants import ESYS_TR

    blob = site.sealed()
    with site.tpm.session() as link:
        link.esys.clear(auth_handle=ESYS_TR.LOCKOUT)
    refusal = site.refusal(blob)
    assert "cleared" in refusal.message
    assert "recovery key" in refusal.remedy
    assert site.opens(site.sealed())


def test_a_tpm_that_another_program_locked_out_still_opens(site: Site) -> None:
    """Guesses at somebody else's object put the whole TPM under dictionary-attack lockout."""
    blob = site.sealed()
    lock_out(site)
    assert site.opens(blob)
    assert site.opens(site.sealed())
    site.boot(FIRST)
    assert site.opens(blob)


def lock_out(site: Site) -> None:
    from tpm2_pytss import TSS2_Exception
    from tpm2_pytss.constants import ESYS_TR, TPM2_RC, TPMA_OBJECT
    from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE, TPMT_PUBLIC

    guarded = TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT
    with site.tpm.session() as link:
        link.esys.dictionary_attack_parameters(
            new_max_tries=2, new_recovery_time=1000, lockout_recovery=1000, lock_handle=ESYS_TR.LOCKOUT
        )
        secret = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=b"right", data=b"theirs"))
        public = TPM2B_PUBLIC(TPMT_PUBLIC.parse("keyedhash", objectAttributes=guarded))
        handle = link.esys.create_primary(in_sensitive=secret, in_public=public)[0]
        codes = []
        for _ in range(4):
            link.esys.tr_set_auth(esys_handle=handle, auth_value=b"wrong")
            with pytest.raises(TSS2_Exception) as caught:
                link.esys.unseal(item_handle=handle)
            codes.append(caught.value.rc)
        link.esys.flush_context(flush_handle=handle)
    assert TPM2_RC.LOCKOUT in codes


# ---- the release ------------------------------------------------------------------------------------------------


def test_a_moved_pcr_11_is_refused_and_named(site: Site) -> None:
    blob = site.sealed()
    site.tpm.extend(11, SECOND)
    message = site.refusal(blob).message
    assert "PCR 11 has moved" in message
    assert "PCR 7" not in message


def test_a_release_of_a_wrong_signer_is_refused(site: Site) -> None:
    """It even stands on the allow-list."""
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    backend.allow(backend.state(), state(SECOND))
    site.boot(SECOND, signer=Signer())
    assert "not one of the release key" in site.refusal(blob).message
    site.boot(SECOND)
    assert site.opens(blob)


def test_releases_go_over_to_another_key_by_one_that_both_have_signed(site: Site) -> None:
    blob = site.sealed()
    assert site.signer
    backend = site.backend()
    backend.open(blob)
    backend.allow(backend.state(), state(SECOND))
    heir = Signer()
    site.boot(SECOND)
    software_tpm.write(site.root, heir.pem, [heir.entry(SECOND), site.signer.entry(SECOND)])
    backend = site.backend()
    opened = backend.open(blob)
    assert opened.reseal
    again = backend.seal(opened.key)
    site.boot(SECOND, signer=heir)
    assert site.opens(again)
    assert not site.opens(blob)


def test_a_flipped_signature_is_refused(site: Site) -> None:
    blob = site.sealed()
    assert site.signer
    pem, entry = site.signer.pem, site.signer.entry(FIRST)
    policy = bytes.fromhex(str(entry["pol"]))
    good = site.signer.sign(policy)
    for at in (9, len(good) - 1):
        flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        software_tpm.write(site.root, pem, [entry | {"sig": encoded(flipped)}])
        assert not site.opens(blob)
    software_tpm.write(site.root, pem, [entry | {"sig": encoded(b"no signature")}])
    assert not site.opens(blob)
    software_tpm.write(site.root, pem, [entry])
    assert site.opens(blob)


def encoded(raw: bytes) -> str:
    import base64

    return base64.b64encode(raw).decode()


def test_a_signature_for_another_policy_is_refused(site: Site) -> None:
    """The signature of another release, put under the name of the one that runs."""
    blob = site.sealed()
    assert site.signer
    mixed = site.signer.entry(FIRST) | {"sig": site.signer.entry(SECOND)["sig"]}
    software_tpm.write(site.root, site.signer.pem, [mixed])
    assert not site.opens(blob)
    other = {7: software_tpm.measured(SECURE_BOOT)}  # signed by the key, but not about PCR 11
    policy = policies.of_registers(other)
    entry = {"pcrs": [7], "pkfp": "", "pol": policy.hex(), "sig": encoded(site.signer.sign(policy))}
    software_tpm.write(site.root, site.signer.pem, [entry])
    assert "no signature" in site.refusal(blob).message


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": 1}', '{"sha256": [{"pcrs": [11]}]}', "[" * 9999])
def test_signatures_that_are_none_are_refused(site: Site, content: str) -> None:
    blob = site.sealed()
    (site.root / "run/systemd/tpm2-pcr-signature.json").write_text(content)
    site.refusal(blob)


def test_an_update_opens_before_and_after_and_the_older_signed_release_no_longer_after_commit(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    backend.allow(backend.state(), state(SECOND))
    site.boot(FIRST)  # the update failed
    assert site.opens(blob)
    site.boot(SECOND)
    backend = site.backend()
    backend.open(blob)
    backend.commit(state(SECOND))
    assert site.opens(blob)
    site.boot(FIRST)
    message = site.refusal(blob).message
    assert "PCR 11 has moved" in message
    assert "older" in message
    site.boot(SECOND)
    assert site.opens(blob)


def test_a_cut_between_the_write_of_the_allow_list_and_the_restart_leaves_both_releases_open(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    backend.allow(backend.state(), state(SECOND))
    for release in (FIRST, SECOND, FIRST):
        site.boot(release)  # without a shutdown of the TPM
        assert site.opens(blob)
    site.boot(THIRD)
    assert not site.opens(blob)


def test_the_running_release_cannot_be_shut_out(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    with pytest.raises(VaultError, match="not open"):
        backend.commit(state(FIRST))
    backend.open(blob)
    for change in (lambda: backend.commit(state(SECOND)), lambda: backend.allow(state(SECOND), state(THIRD))):
        with pytest.raises(VaultError, match="shut out the system that runs"):
            change()
    assert site.opens(blob)


# ---- Secure Boot ------------------------------------------------------------------------------------------------


def test_a_dbx_update_opens_when_it_was_allowed_before(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    backend.allow(backend.state(), state(FIRST, firmware=ELSEWHERE))
    site.boot(FIRST, firmware=ELSEWHERE)
    assert site.opens(blob)


def test_a_dbx_update_that_was_not_allowed_names_pcr_7_and_what_moves_it(site: Site) -> None:
    blob = site.sealed()
    site.boot(FIRST, firmware=ELSEWHERE)
    site.tpm.extend(0, FIRST)
    refusal = site.refusal(blob)
    assert "PCR 7 has moved" in refusal.message
    assert "dbx" in refusal.message
    assert "PCR 11 has" not in refusal.message
    assert "Not bound, and moved since it was sealed: PCR 0 (the firmware)" in refusal.message
    assert "recovery key" in refusal.remedy


# ---- damage -----------------------------------------------------------------------------------------------------


def test_halves_of_different_blobs_are_refused(site: Site) -> None:
    one, two = measured.parse(site.sealed())[0], measured.parse(site.sealed())[0]
    for mixed in (replace(one, signed=two.signed), replace(one, listed=two.listed, handle=two.handle)):
        with pytest.raises(SealError, match="halves"):
            site.backend().open(measured.encode(mixed, KEY))


@pytest.mark.parametrize("garbage", [b"\0", b"\xff" * 300, bytes(300), b"\0\x04abcd\0\x04abcd"])
def test_a_hostile_half_is_refused(site: Site, garbage: bytes) -> None:
    """With a check that its maker could compute."""
    blob, _, _ = measured.parse(site.sealed())
    for hostile in (replace(blob, listed=garbage), replace(blob, signed=garbage)):
        with pytest.raises(SealError):
            site.backend().open(measured.encode(hostile, KEY))
    with pytest.raises(VaultError):
        site.backend().open(measured.encode(replace(blob, handle=0x40000001), KEY))
    with pytest.raises(SealError):
        site.backend().open(measured.encode(replace(blob, release_key=garbage), KEY))


def test_recorded_registers_cannot_be_altered(site: Site) -> None:
    blob, _, _ = measured.parse(site.sealed())
    with pytest.raises(SealError):
        site.backend().open(measured.encode(replace(blob, registers={}), bytes(32)))


def test_any_flipped_byte_of_a_blob_is_refused_or_changes_nothing(site: Site) -> None:
    blob, dice = site.sealed(), random.Random(1)
    for at in dice.sample(range(len(blob)), 60):
        altered = blob[:at] + bytes([blob[at] ^ 1 << dice.randrange(8)]) + blob[at + 1 :]
        with pytest.raises(VaultError):
            site.backend().open(altered)


def test_a_full_tpm_says_what_to_remove(site: Site) -> None:
    while len(site.tpm.lists()) < 16:
        site.tpm.create_list(bytes(32), [state(FIRST)])
    with pytest.raises(BindingError, match="tpm2_nvundefine"):
        site.sealed()
