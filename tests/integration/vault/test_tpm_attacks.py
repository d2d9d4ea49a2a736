"""The allow-list and the latch under attack, the wire under a tap, and other users of the TPM in the way.

Proven on swtpm, not on a real TPM.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.errors import BindingError
from appliance.vault import measured
from appliance.vault.backends.tpm import Settings, create
from appliance.vault.port import KEY_BYTES
from appliance.vault.secret import Secret
from hardware.tpm import LATCH, Release, Tpm
from tests.software_tpm import state
from tests.tpm_site import FIRST, KEY, SECOND, Site

RACES = int(os.environ.get("MILLWRIGHT_RACES", "100"))
QUIET = 5  # opens without a race
# Extends a register that is not ours, at random, once in so many seconds, until its input ends. Says how often.
DISTURBER = """
import random, select, sys
from hardware.tpm import Tpm
tpm, count, often = Tpm(sys.argv[1]), 0, 1 / float(sys.argv[2])
with tpm.session():
    while not select.select([sys.stdin], [], [], random.expovariate(often))[0]:
        tpm.extend(12, bytes([count % 256]) * 32)
        count += 1
        if count == 1:
            print("ready", flush=True)
print(count, flush=True)
"""


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
def test_opens_that_race_with_another_register_all_succeed(site: Site, repository: Path) -> None:
    """MILLWRIGHT_RACES=1000 for the long run. The register changes several times while a key is opened, however slow
    the machine is at present: at a fixed rate it would, on a busy one, leave no attempt the time to come to its end."""
    blob = site.sealed()
    began = time.monotonic()
    assert all(site.opens(blob) for _ in range(QUIET))
    pause_s = (time.monotonic() - began) / QUIET / 10
    command = [sys.executable, "-c", DISTURBER, site.machine.tcti, str(pause_s)]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as disturber:
        assert disturber.stdin
        assert disturber.stdout
        assert disturber.stdout.readline() == b"ready\n"
        failures = sum(not site.opens(blob) for _ in range(RACES))
        disturber.stdin.close()
        extended = int(disturber.stdout.read())
    print(f"{RACES} opens against {extended} extends, one in {pause_s * 1000:.1f} ms")
    assert failures == 0
    assert extended > RACES
