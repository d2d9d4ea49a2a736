"""The suites: what is sealed opens under the same key with the same aad, and under nothing else."""

import pytest

from appliance.errors import SealError, VaultError
from appliance.vault import suites
from appliance.vault.suites import SUITES, Suite

KEY = bytes(range(32))


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_what_is_sealed_opens_under_its_key_and_aad_only(suite: Suite) -> None:
    sealed = suite.seal(KEY, b"plaintext", b"place")
    assert suite.open(KEY, sealed, b"place") == b"plaintext"
    for key, aad in ((KEY[::-1], b"place"), (KEY, b"another"), (KEY, b"")):
        with pytest.raises(SealError, match="another key"):
            suite.open(key, sealed, aad)


def test_suites_are_found_by_number_and_name() -> None:
    assert [suites.by_id(suite.id) for suite in SUITES] == list(SUITES)
    assert [suites.by_name(suite.name) for suite in SUITES] == list(SUITES)
    with pytest.raises(SealError, match="no suite 3"):
        suites.by_id(3)
    with pytest.raises(VaultError, match="aes-256-gcm, sm4-gcm"):
        suites.by_name("rot13")
