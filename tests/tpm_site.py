"""A machine with a TPM in software, whose releases one signer signs."""

import pytest

from appliance.errors import BindingError
from appliance.vault.backends.tpm import Settings, TpmBackend, create
from appliance.vault.port import KEY_BYTES
from appliance.vault.secret import Secret
from hardware.tpm import Release, Tpm
from tests.software_tpm import SECURE_BOOT, Signer, SoftwareTpm

KEY = bytes(range(100, 100 + KEY_BYTES))
FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))  # releases, as measured
ELSEWHERE = bytes(32)


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
