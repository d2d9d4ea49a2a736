"""Which backend binds the vault's key: the strongest that is there, and never a weaker one in silence. Pure.

A backend that is there and does not work stops the choice: a TPM that is switched off in the firmware must not turn
into a fingerprint without anybody noticing. Only a name in the configuration is a decision.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance.errors import VaultError

AUTO = "auto"


@dataclass(frozen=True)
class Candidate:
    """A backend as this box has it. It works where it is `present` and `reason` is empty."""

    name: str
    strength: int  # of its promise
    present: bool = True  # what it needs is in this box
    reason: str = ""  # why it does not work
    remedy: str = ""


@dataclass(frozen=True)
class Choice:
    name: str
    warnings: tuple[str, ...] = ()


def choose(candidates: Collection[Candidate], wanted: str = AUTO, bound: Sequence[str] = ()) -> Choice:
    """`wanted` is the configuration's word; `bound` are the backends that the vault's key is bound to already.

    VaultError names the backend that does not work, and why.
    """
    ranked = sorted(candidates, key=lambda candidate: -candidate.strength)
    if wanted != AUTO:
        return _named(ranked, wanted, bound)
    for name in bound:
        _not_weaker(ranked, name)
    return Choice(_strongest(ranked).name)


def _strongest(ranked: Sequence[Candidate]) -> Candidate:
    for candidate in ranked:
        if candidate.strength <= 0:
            break  # protects nothing: only by name
        if candidate.reason and candidate.present:
            weaker = next((one.name for one in ranked if one.strength < candidate.strength and _works(one)), "")
            named = f' Or name the weaker one: backend = "{weaker}" under [vault].' if weaker else ""
            raise VaultError(
                f"the vault's backend '{candidate.name}' is there and does not work: {candidate.reason}",
                f"{candidate.remedy}{named}".strip(),
            )
        if candidate.present:
            return candidate
    reasons = "; ".join(_why(candidate) for candidate in ranked if candidate.strength > 0)
    raise VaultError(
        f"nothing in this box can bind a key: {reasons}",
        'Switch the TPM on in the firmware; on a developer\'s machine set backend = "plain" under [vault].',
    )


def _named(ranked: Sequence[Candidate], wanted: str, bound: Sequence[str]) -> Choice:
    found = next((candidate for candidate in ranked if candidate.name == wanted), None)
    if found is None:
        known = ", ".join(candidate.name for candidate in ranked)
        raise VaultError(f"there is no backend '{wanted}' of the vault", f"There are: {AUTO}, {known}.")
    if not _works(found):
        raise VaultError(f"the vault's backend '{wanted}' does not work: {_why(found)}", found.remedy)
    stronger = [one.name for one in ranked if one.strength > found.strength and (one.present or one.name in bound)]
    warnings = tuple(f"'{wanted}' is weaker than '{name}', and was chosen by the configuration" for name in stronger)
    return Choice(wanted, warnings)


def _not_weaker(ranked: Sequence[Candidate], name: str) -> None:
    """What the key is bound to must work still, unless something stronger does."""
    held = next((candidate for candidate in ranked if candidate.name == name), None)
    if held is None or held.strength <= 0 or _works(held):
        return
    if any(_works(candidate) and candidate.strength > held.strength for candidate in ranked):
        return
    raise VaultError(
        f"the vault is bound by '{name}', which does not work: {_why(held)}",
        f"{held.remedy or 'Put it back.'} A weaker backend is used only where the configuration names it: "
        'backend = "fingerprint" under [vault], then millwright vault recover.',
    )


def _works(candidate: Candidate) -> bool:
    return candidate.present and not candidate.reason


def _why(candidate: Candidate) -> str:
    return f"{candidate.name}: {candidate.reason or 'not in this box'}" if not _works(candidate) else candidate.name
