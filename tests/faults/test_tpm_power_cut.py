"""A vault on a TPM when the power goes: of the TPM, of the process that has the vault open, with writes in flight.

    MILLWRIGHT_POWER_CUTS=1000 pytest tests/faults/test_tpm_power_cut.py

Proven on swtpm, not on a real TPM.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import software_tpm
from tests.faults import tpm_writer

CUTS = int(os.environ.get("MILLWRIGHT_POWER_CUTS", "60"))
SEED = os.environ.get("MILLWRIGHT_SEED", "1")


@pytest.mark.timeout(180 + 2 * CUTS)
def test_nothing_is_lost_and_nobody_locked_out_by_dirty_power_cuts(tmp_path: Path, repository: Path) -> None:
    software_tpm.make().close()  # skips here, where there is none
    command = [sys.executable, tpm_writer.__file__, str(tmp_path / "box"), str(CUTS), SEED]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    counts = json.loads(done.stdout)
    assert counts["cuts"] == CUTS
    assert counts["lists"] == 1  # none was left behind
    for what in ("interrupted", "acknowledged", "tpm_first", "updates"):
        assert counts[what] > CUTS / 30, what
