"""The vault's TPM backend over a TPM in software: what opens, what does not, and what is said then.

Proven on swtpm, not on a real TPM.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from appliance.binding import TranslatedCounter
from appliance.errors import BindingError, SealError, VaultError
from appliance.vault import chest, measured
from appliance.vault.backends.tpm import Settings, TpmBackend, create
from appliance.vault.port import KEY_BYTES
from appliance.vault.secret import Secret
from hardware import tpm as hardware_tpm
from hardware.tpm import LATCH, Release, Tpm, policies
from tests import software_tpm
from tests.software_tpm import SECURE_BOOT, Signer, SoftwareTpm, state

KEY = bytes(range(100, 100 + KEY_BYTES))
FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))  # releases, as measured
ELSEWHERE = bytes(32)
RACES = int(os.environ.get("MILLWRIGHT_RACES", "100"))
# Extends a register that is not ours as fast as the TPM takes it, until its input ends. Says how often.
DISTURBER = """
import select, sys
from hardware.tpm import Tpm
tpm, count = Tpm(sys.argv[1]), 0
with tpm.session():
    while not select.select([sys.stdin], [], [], float(sys.argv[2]))[0]:
        tpm.extend(12, bytes([count % 256]) * 32)
        count += 1
        if count == 1:
            print("ready", flush=True)
print(count, flush=True)
"""


class Site:
    """A machine with a TPM whose releases one signer signs."""

    def __init__(self, machine: SoftwareTpm, signer: Signer | None) -> None:
        self.machine, self.signer = machine, signer
        self.root = machine.folder / "root"

    def boot(self, release: bytes, *, firmware: bytes = SECURE_BOOT, signer: Signer | None = None) -> None:
        """A release starts that `signer` has signed."""
        self.machine.boot(release, firmware)
        by = signer or self.signer
        if by is not None:
            by.publish(self.root, release)

    @property
    def tpm(self) -> Tpm:
        return Tpm(self.machine.tcti, Release(self.root))

    def backend(self) -> TpmBackend:
        """As a process has it that has just started."""
        return create(Settings(), self.tpm)

    def sealed(self) -> bytes:
        return self.backend().seal(Secret(KEY))

    def opens(self, blob: bytes) -> bool:
        try:
            return self.backend().open(blob).key.reveal() == KEY
        except BindingError:
            return False

    def refusal(self, blob: bytes) -> BindingError:
        with pytest.raises(BindingError) as caught:
            self.backend().open(blob)
        assert caught.value.remedy
        return caught.value


def machine() -> Iterator[SoftwareTpm]:
    made = software_tpm.make()
    try:
        yield made
    finally:
        made.close()


box = pytest.fixture(machine, name="box")
other_box = pytest.fixture(machine, name="other_box")


@pytest.fixture
def site(box: SoftwareTpm) -> Site:
    """A release of ours runs."""
    made = Site(box, Signer())
    made.boot(FIRST)
    return made


@pytest.fixture
def laptop(box: SoftwareTpm) -> Site:
    """A system with a TPM and Secure Boot, and no signed release."""
    made = Site(box, None)
    made.boot(FIRST)
    return made


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


# ---- the allow-list under attack --------------------------------------------------------------------------------


def test_an_owner_who_takes_the_index_away_is_noticed(site: Site) -> None:
    blob = site.sealed()
    site.tpm.remove_list(measured.parse(blob)[0].handle)
    refusal = site.refusal(blob)
    assert "taken away" in refusal.message
    assert "recovery key" in refusal.remedy


def test_an_owner_who_redefines_the_index_does_not_open_it(site: Site) -> None:
    """The older release wants to be allowed again: the index made anew, with a writing key or a password of its own."""
    blob = site.sealed()
    handle = measured.parse(blob)[0].handle
    public = public_of(site, handle)
    site.boot(SECOND)
    site.tpm.remove_list(handle)
    assert site.tpm.create_list(bytes(32), [state(SECOND)]) == handle
    assert not site.opens(blob)
    for attributes in (hardware_list() | authwrite(), hardware_list()):
        site.tpm.remove_list(handle)
        redefine(site, handle, attributes, public)
        assert not site.opens(blob)


def test_a_rotation_does_not_bind_to_a_list_that_somebody_has_put_there(site: Site) -> None:
    backend = site.backend()
    handle = measured.parse(backend.seal(Secret(KEY)))[0].handle
    site.tpm.remove_list(handle)
    assert site.tpm.create_list(bytes(32), [state(FIRST)]) == handle
    with pytest.raises(BindingError, match="another one than the vault's"):
        backend.seal(Secret(KEY))


def test_an_index_that_was_left_unwritten_by_a_cut_is_used_again(site: Site) -> None:
    from hardware.tpm import indices, lists, slots

    with site.tpm.session() as link:
        indices.define(link, indices.LISTS.start, lists.LIST, bytes(32), slots.CONTENT_BYTES)
    assert measured.parse(site.sealed())[0].handle == indices.LISTS.start


def public_of(site: Site, handle: int) -> bytes:
    """The policy that writes it."""
    from hardware.tpm import indices

    with site.tpm.session() as link, indices.at(link, handle) as index:
        return bytes(indices.public(link, index).authPolicy)


def hardware_list() -> int:
    from hardware.tpm import lists

    return int(lists.LIST)


def authwrite() -> int:
    from tpm2_pytss.constants import TPMA_NV

    return int(TPMA_NV.AUTHWRITE)


def redefine(site: Site, handle: int, attributes: int, policy: bytes) -> None:
    """With the very policy of the one before; where a password writes it, too, it is written."""
    from tpm2_pytss.constants import TPMA_NV

    from hardware.tpm import indices, slots

    with site.tpm.session() as link:
        indices.define(link, handle, TPMA_NV(attributes), policy, slots.CONTENT_BYTES)
        if attributes & authwrite():
            with indices.at(link, handle) as index:
                link.esys.nv_write(nv_index=index, data=slots.encode([state(SECOND)]))


def test_who_has_no_seed_does_not_write_the_allow_list(site: Site) -> None:
    blob = site.sealed()
    handle = measured.parse(blob)[0].handle
    with pytest.raises(PermissionError):
        site.tpm.write_list(handle, bytes(32), [state(SECOND)])
    assert site.tpm.read_list(handle) == [state(FIRST)]


# ---- the latch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["site", "laptop"])
def test_after_the_latch_nothing_opens_until_the_next_boot_even_for_root(
    kind: str, request: pytest.FixtureRequest
) -> None:
    at: Site = request.getfixturevalue(kind)
    blob = at.sealed()
    backend = at.backend()
    backend.open(blob)
    backend.latch()
    for again in (backend, at.backend()):
        with pytest.raises(BindingError, match="shut until the next") as caught:
            again.open(blob)
        assert "Restart" in caught.value.remedy
    at.boot(FIRST)
    assert at.opens(blob)


def test_a_latched_vault_still_rotates_and_updates(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    backend.latch()
    again = backend.seal(Secret(KEY))
    backend.allow(backend.state(), state(SECOND))
    assert not site.opens(again)
    for release in (FIRST, SECOND):
        site.boot(release)
        assert site.opens(again)
        assert site.opens(blob)


def test_either_half_of_the_latch_is_enough(site: Site) -> None:
    blob = site.sealed()
    site.tpm.extend(11, LATCH)
    assert "shut until" in site.refusal(blob).message
    site.boot(FIRST)
    from hardware.tpm import lists

    with site.tpm.session() as link:
        lists.shut(link, measured.parse(blob)[0].handle)
    site.refusal(blob)


# ---- damage -----------------------------------------------------------------------------------------------------


def test_halves_of_different_blobs_are_refused(site: Site) -> None:
    one, two = measured.parse(site.sealed())[0], measured.parse(site.sealed())[0]
    for mixed in (replace(one, signed=two.signed), replace(one, listed=two.listed, handle=two.handle)):
        with pytest.raises(SealError, match="halves"):
            site.backend().open(measured.encode(mixed, KEY))


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


# ---- the wire ---------------------------------------------------------------------------------------------------


def test_neither_the_key_nor_a_half_of_it_is_ever_on_the_wire(site: Site) -> None:
    wire = bytearray()
    tpm = Tpm(lambda: recorded(site.machine.tcti, wire), Release(site.root))
    backend = create(Settings(), tpm)
    blob = backend.seal(Secret(KEY))
    assert create(Settings(), tpm).open(blob).key.reveal() == KEY
    parsed = measured.parse(blob)[0]
    half = site.tpm.unseal_signed(parsed.signed, parsed.release_key)
    listed = site.tpm.unseal_listed(parsed.listed, parsed.handle)
    assert bytes(a ^ b for a, b in zip(half, listed, strict=True))[:KEY_BYTES] == KEY
    assert policies.of_list(b"")[:4] not in wire[:0]  # the wire is bytes
    assert parsed.signed[2:100] in wire  # it was recorded
    for secret in (KEY, half, listed):
        for at in range(0, len(secret), 8):
            assert secret[at : at + 8] not in wire


def recorded(tcti: str, wire: bytearray) -> object:
    from tpm2_pytss import TCTILdr
    from tpm2_pytss.TCTI import PyTCTI

    class Recorder(PyTCTI):  # type: ignore[misc]  # the library's types are not looked at
        """All that goes by, both ways."""

        def __init__(self) -> None:
            super().__init__()
            self._inner = TCTILdr.parse(tcti)

        def do_transmit(self, command: bytes) -> None:
            wire.extend(command)
            self._inner.transmit(command)

        def do_receive(self, timeout: int) -> bytes:
            answer: bytes = self._inner.receive(timeout=timeout)
            wire.extend(answer)
            return answer

        def do_finalize(self) -> None:
            self._inner.close()

    return Recorder()


# ---- races ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180 + RACES)
@pytest.mark.parametrize("pause_s", ["0.001"])
def test_opens_that_race_with_another_register_all_succeed(site: Site, repository: Path, pause_s: str) -> None:
    """MILLWRIGHT_RACES=1000 for the long run."""
    blob = site.sealed()
    command = [sys.executable, "-c", DISTURBER, site.machine.tcti, pause_s]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as disturber:
        assert disturber.stdin
        assert disturber.stdout
        assert disturber.stdout.readline() == b"ready\n"
        failures = sum(not site.opens(blob) for _ in range(RACES))
        disturber.stdin.close()
        extended = int(disturber.stdout.read())
    print(f"{RACES} opens against {extended} extends")
    assert failures == 0
    assert extended > RACES / 2


# ---- counters ---------------------------------------------------------------------------------------------------


def test_a_counter_never_goes_back(site: Site) -> None:
    counter = TranslatedCounter(site.tpm.counter("vault", "here"))
    assert counter.value() == 0
    values = [counter.advance() for _ in range(3)]
    assert values == list(range(values[0], values[0] + 3))
    site.boot(FIRST)
    assert TranslatedCounter(site.tpm.counter("vault", "here")).value() == values[-1]


def test_counters_of_other_purposes_and_owners_are_others(site: Site) -> None:
    mine = site.tpm.counter("vault", "here")
    before = mine.advance()
    for other in (site.tpm.counter("audit", "here"), site.tpm.counter("vault", "there")):
        other.advance()
    assert mine.value() == before


def test_a_counter_that_is_taken_away_and_made_anew_leaps(site: Site) -> None:
    counter = site.tpm.counter("vault", "here")
    anchor = [counter.advance() for _ in range(5)][-1]
    counter.remove()
    assert counter.value() == 0
    assert counter.advance() > anchor


def test_an_index_with_a_value_of_ones_choice_is_no_counter(site: Site) -> None:
    from tpm2_pytss.constants import TPMA_NV

    from hardware.tpm import counters, indices

    counter = site.tpm.counter("vault", "here")
    for _ in range(3):
        counter.advance()
    counter.remove()
    with site.tpm.session() as link:
        handle = indices.COUNTERS.start
        plain = TPMA_NV(int(TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.NO_DA))
        indices.define(link, handle, plain, counters.label("vault", "here"), 8)
        with indices.at(link, handle) as index:
            link.esys.nv_write(nv_index=index, data=(3).to_bytes(8, "big"))
    assert counter.value() == 0


def test_an_older_file_is_known_by_the_counter(site: Site, tmp_path: Path) -> None:
    vault, kept = tmp_path / "vault", tmp_path / "kept"

    def anchor() -> TranslatedCounter:
        return TranslatedCounter(site.tpm.counter("vault", str(vault)))

    made, _ = chest.create(vault, site.backend(), "aes-256-gcm", (), anchor(), lambda: 1)
    made.put("mqtt/plant", Secret(b"old"))
    made.close()
    copy(vault, kept)
    with chest.open(vault, [site.backend()], anchor(), lambda: 2) as opened:
        assert opened.status().anchored
        opened.put("mqtt/plant", Secret(b"new"))
    copy(kept, vault)
    with pytest.raises(BindingError, match="older than the latest"):
        chest.open(vault, [site.backend()], anchor(), lambda: 3)


def copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target, dirs_exist_ok=True)


# ---- the TPM itself ---------------------------------------------------------------------------------------------


def test_find_names_the_chip(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hardware_tpm.TCTI, site.machine.tcti)
    found = hardware_tpm.find()
    assert found.usable
    assert (found.maker, found.model) == ("IBM", "SWTPM")
    assert found.firmware


def test_a_tpm_that_is_gone_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = site.sealed()
    site.machine.power_cut()
    with pytest.raises(BindingError, match="does not answer"):
        site.backend().open(blob)
    monkeypatch.setenv(hardware_tpm.TCTI, site.machine.tcti)
    found = hardware_tpm.find()
    assert found.present
    assert not found.usable
    assert found.remedy


def test_the_wrong_end_of_a_socket_does_not_hang(site: Site) -> None:
    blob = site.sealed()
    with pytest.raises(BindingError):
        create(Settings(), Tpm("swtpm:path=/nonexistent", Release(site.root))).open(blob)


CASES: dict[str, Callable[[Path], object]] = {
    "no TPM": lambda root: None,
    "an old one": lambda root: (root / "dev/tpm0").touch(),
}


@pytest.mark.parametrize("case", CASES)
def test_find_says_what_is_missing(case: str, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    CASES[case](tmp_path)
    found = hardware_tpm.find(tmp_path)
    assert not found.usable
    assert found.present == (case != "no TPM")
    assert "/dev/tpmrm0" in found.reason
    assert found.remedy


def test_without_the_library_the_remedy_is_to_install_it(repository: Path) -> None:
    """In a process of its own, where the import fails."""
    code = (
        "import sys, os; sys.modules['tpm2_pytss'] = None; os.environ['MILLWRIGHT_TPM'] = 'device:/nowhere'\n"
        "import json; from hardware.tpm import find; found = find(); print(json.dumps([found.reason, found.remedy]))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, check=True).stdout
    reason, remedy = json.loads(output)
    assert "not installed" in reason
    assert "tools/setup tpm" in remedy
