"""Updates of the system and a vault that a TPM in software binds: told before the restart, and after it was blessed."""

import pytest

from appliance.errors import VaultError
from appliance.vault import expecting
from tests.software_tpm import state
from tests.tpm_site import FIRST, SECOND, THIRD, Site

PHASES = "3"


def values(release: bytes) -> dict[str, str]:
    """What a release says will be measured: at other moments of its boot it is something else."""
    return {"1": "ab" * 32, PHASES: state(release)[11].hex()}


def test_an_update_that_was_told_of_opens_on_both_sides_and_then_on_the_new_one_alone(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    assert expecting.expect(backend, values(FIRST), {}) == PHASES
    assert expecting.expect(backend, values(FIRST), values(SECOND)) == PHASES
    site.boot(FIRST)
    assert site.opens(blob)  # the new one did not come up
    site.boot(SECOND)
    backend = site.backend()
    backend.open(blob)
    expecting.settled(backend)
    site.boot(SECOND)
    assert site.opens(blob)
    site.boot(FIRST)
    assert not site.opens(blob)


def test_an_update_that_nobody_told_of_finds_the_vault_shut(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    expecting.expect(backend, values(FIRST), {})
    site.boot(SECOND)
    assert not site.opens(blob)


def test_what_would_lock_it_is_refused_and_changes_nothing(site: Site) -> None:
    blob = site.sealed()
    backend = site.backend()
    backend.open(blob)
    for running, coming in ((values(THIRD), values(SECOND)), (values(FIRST), {"1": "cd" * 32})):
        with pytest.raises(VaultError):
            expecting.expect(backend, running, coming)
    site.boot(SECOND)
    assert not site.opens(blob)
    site.boot(FIRST)
    assert site.opens(blob)
