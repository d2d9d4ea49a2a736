"""The strongest backend that is there, and never a weaker one in silence."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import VaultError
from appliance.vault.choice import AUTO, Candidate, choose

TPM = Candidate("tpm", 30)
FINGERPRINT = Candidate("fingerprint", 20)
PLAIN = Candidate("plain", 0)
ALL = (PLAIN, FINGERPRINT, TPM)
NO_TPM = replace(TPM, present=False, reason="there is no /dev/tpmrm0")
BROKEN_TPM = replace(TPM, reason="it is locked out", remedy="Wait ten minutes.")


def test_the_strongest_is_chosen() -> None:
    assert choose(ALL).name == "tpm"
    assert choose((PLAIN, FINGERPRINT, NO_TPM)).name == "fingerprint"


def test_a_tpm_that_does_not_work_is_not_passed_over() -> None:
    with pytest.raises(VaultError, match="'tpm' is there and does not work: it is locked out") as caught:
        choose((PLAIN, FINGERPRINT, BROKEN_TPM))
    assert caught.value.remedy.startswith("Wait ten minutes.")
    assert 'backend = "fingerprint"' in caught.value.remedy


def test_a_weaker_one_that_is_named_is_chosen_with_a_warning() -> None:
    chosen = choose((PLAIN, FINGERPRINT, BROKEN_TPM), "fingerprint")
    assert chosen.name == "fingerprint"
    assert chosen.warnings == ("'fingerprint' is weaker than 'tpm', and was chosen by the configuration",)
    assert choose((FINGERPRINT, NO_TPM), "fingerprint").warnings == ()


def test_the_strongest_is_named_without_a_warning() -> None:
    assert choose(ALL, "tpm").warnings == ()


def test_one_that_is_named_and_does_not_work_stops_it() -> None:
    with pytest.raises(VaultError, match=r"'tpm' does not work: tpm: there is no /dev/tpmrm0"):
        choose((FINGERPRINT, NO_TPM), "tpm")


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(VaultError, match="there is no backend 'tpn'") as caught:
        choose(ALL, "tpn")
    assert "auto, tpm, fingerprint, plain" in caught.value.remedy


def test_plain_is_chosen_by_name_only() -> None:
    with pytest.raises(VaultError, match="nothing in this box can bind a key: tpm: there is no /dev/tpmrm0"):
        choose((PLAIN, NO_TPM))
    assert choose((PLAIN, NO_TPM), "plain").name == "plain"


def test_a_vault_bound_to_a_tpm_that_vanished_does_not_turn_to_the_fingerprint() -> None:
    with pytest.raises(VaultError, match="the vault is bound by 'tpm', which does not work"):
        choose((PLAIN, FINGERPRINT, NO_TPM), bound=["tpm"])
    assert choose((FINGERPRINT, NO_TPM), "fingerprint", bound=["tpm"]).warnings


def test_a_vault_bound_by_the_fingerprint_moves_up() -> None:
    assert choose(ALL, bound=["fingerprint"]).name == "tpm"
    gone = replace(FINGERPRINT, present=False)
    assert choose((gone, TPM), bound=["fingerprint"]).name == "tpm"


def test_recipients_among_the_bindings_are_no_backends() -> None:
    assert choose(ALL, bound=["tpm", "recovery"]).name == "tpm"


STATES = st.tuples(st.booleans(), st.sampled_from(["", "broken"]))


@given(STATES, STATES, st.sampled_from([(), ("tpm",), ("fingerprint",)]))
def test_auto_never_gives_less_than_is_there(
    tpm: tuple[bool, str], print_: tuple[bool, str], bound: tuple[str, ...]
) -> None:
    candidates = [
        replace(TPM, present=tpm[0], reason=tpm[1]),
        replace(FINGERPRINT, present=print_[0], reason=print_[1]),
        PLAIN,
    ]
    try:
        name = choose(candidates, AUTO, bound).name
    except VaultError:
        return
    assert name != "plain"
    assert name == "tpm" if tpm[0] else (name == "fingerprint" and "tpm" not in bound)
    assert dict(zip(("tpm", "fingerprint"), (tpm, print_), strict=True))[name] == (True, "")
