"""Counters in a TPM, and what is said of a TPM that is there, gone or out of reach.

Proven on swtpm, not on a real TPM.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.binding import TranslatedCounter
from appliance.errors import BindingError
from appliance.vault import chest
from appliance.vault.backends.tpm import Settings, create
from appliance.vault.secret import Secret
from hardware import tpm as hardware_tpm
from hardware.tpm import Release, Tpm
from tests.tpm_site import FIRST, Site

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
