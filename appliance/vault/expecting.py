"""What a vault is told before another release of the system is started, and after it proved sound. Decides, and asks a
backend that opens for registered states of the machine alone."""

from collections.abc import Mapping

from appliance.errors import VaultError
from appliance.vault.measured import RELEASE
from appliance.vault.port import Measured


def expect(backend: object, running: Mapping[str, str], coming: Mapping[str, str]) -> str:
    """See `Custody.expect`."""
    if not isinstance(backend, Measured):
        return ""
    state = backend.state()
    if RELEASE not in state:
        return ""
    phases = next((one for one, value in running.items() if value == state[RELEASE].hex()), "")
    if not phases:
        raise VaultError(
            "what the TPM had measured when the vault opened is not what the running release says of itself",
            "The command line was edited, or the release is another one: have the recovery key at hand.",
        )
    if coming:
        backend.allow(state, {**state, RELEASE: _value(coming, phases)})
    return phases


def settled(backend: object) -> None:
    """See `Custody.settled`."""
    if isinstance(backend, Measured):
        backend.commit(backend.state())


def _value(coming: Mapping[str, str], phases: str) -> bytes:
    try:
        value = bytes.fromhex(coming[phases])
    except (KeyError, ValueError):
        value = b""
    if len(value) != 32:
        problem = f"the release does not say what will be measured after {phases} phases of its boot"
        raise VaultError(problem, "Publish it with signatures for every phase.")
    return value
