"""Machines with a TPM, running a release of ours or another system."""

from collections.abc import Iterator

import pytest

from tests import software_tpm
from tests.software_tpm import Signer, SoftwareTpm
from tests.tpm_site import FIRST, Site


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
