"""Which of the roots that a survey found opens, with what, and whether it is the latest there ever was.

The latest root that is as it was written wins, whichever copy it stands in. One that does not open is passed over
only for an older one that does, and then both copies are kept aside before anything is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from appliance.errors import BindingError, SealError, VaultError
from appliance.vault import keyring, recovery
from appliance.vault.keyring import Keyring
from appliance.vault.layout import Purpose, Root, Survey
from appliance.vault.port import Backend, Counter, Opened, Promise
from appliance.vault.recovery import RecoveryKey

_COMMAND = "millwright vault recover"
RECOVER = f"Open it with the recovery key: {_COMMAND}."


@dataclass(frozen=True)
class Unlocked:
    ring: Keyring
    root: Root
    by: str  # the backend's name, or "recovery"
    promise: Promise
    warnings: tuple[str, ...]
    reseal: bool = False
    passed_over: bool = False  # a later root did not open, or there is another vault's: the copies are kept aside


def by_backends(survey: Survey, backends: Sequence[Backend]) -> Unlocked:
    """With the first that opens, the stronger first. BindingError tells of each why it did not; SealError where
    nothing of the file can be read."""
    _check_readable(survey, Purpose.VAULT)
    problems: dict[str, VaultError] = {}
    known: dict[tuple[str, bytes], Opened | VaultError] = {}
    for root, backend, blob in _ways(survey, backends):
        try:
            opened = _opened(known, backend, blob)
            found = Unlocked(
                keyring.unlock(root, opened.key, survey.records), root, backend.name, backend.promise, opened.warnings
            )
        except VaultError as error:
            problems.setdefault(backend.name, error)
            continue
        found = _alone(_latest(replace(found, reseal=opened.reseal), survey), survey)
        return replace(found, warnings=(*found.warnings, *_weaker(found, backends, problems)))
    raise _locked(survey, backends, problems)


def by_recovery(survey: Survey, key: RecoveryKey, promise: Promise, purpose: Purpose = Purpose.VAULT) -> Unlocked:
    """SealError where it is none of the vault's recovery keys, or the file was altered."""
    _check_readable(survey, purpose)
    problem: SealError | None = None
    for root in survey.roots:
        try:
            opened, recipient = keyring.unwrap(root, key)
            found = Unlocked(keyring.unlock(root, opened, survey.records), root, "recovery", promise, ())
        except SealError as error:
            problem = problem or error
            continue
        return _alone(_latest(replace(found, warnings=origin(recipient.name)), survey), survey)
    raise problem or SealError("the vault's file is damaged", "Restore a backup.")


def origin(recipient: str) -> tuple[str, ...]:
    """What an escrow key cannot know: it shares nothing with the vault, so anybody could have written to it."""
    if recipient == recovery.OWN:
        return ()
    return (f"opened with the key of '{recipient}', which cannot tell who wrote the file: compare what it holds",)


def is_behind(ring: Keyring, counter: Counter | None) -> bool:
    """Whether the counter has yet to be advanced to where the file is: the power went between the two.

    BindingError: the file is older than the latest, or the counter is another one.
    """
    anchor = ring.head.anchor
    if anchor is None:
        return False
    if counter is None:
        raise BindingError("the vault is anchored in a counter that this box does not offer", RECOVER)
    value = counter.value()
    if value > anchor:
        raise BindingError(
            f"the vault's file is older than the latest one: it says {anchor}, the counter {value}",
            "Put the latest file back. To accept this one: millwright vault recover --accept-older.",
        )
    if value < anchor - 1:
        raise BindingError(f"the counter says {value}, the vault's file {anchor}: it is another counter", RECOVER)
    return value < anchor


def check_recovered(ring: Keyring, counter: Counter | None, *, accept_older: bool) -> tuple[str, ...]:
    """As `is_behind`, for a vault that may have come to another board: what stays doubtful is said, not refused, but
    for an older file that nobody has accepted."""
    anchor = ring.head.anchor
    if anchor is None:
        return ()
    if counter is None:
        return ("the file was anchored in a counter, which is not here: whether it is the latest is not known",)
    value = counter.value()
    if value > anchor and not accept_older:
        raise BindingError(
            f"the file says {anchor}, this box's counter {value}: it is an older file, or another box's",
            "If that is known: millwright vault recover --accept-older.",
        )
    if value in (anchor - 1, anchor):
        return ()
    return (f"the file says {anchor}, the counter {value}: whether it is the latest is not known",)


def _check_readable(survey: Survey, purpose: Purpose) -> None:
    if not survey.roots:
        raise SealError("the vault's file is damaged in both copies, or none of ours", "Restore a backup.")
    if survey.roots[0].head.purpose is not purpose:
        raise VaultError("the vault's file is a backup", "Restore it: millwright vault restore.")


def _ways(survey: Survey, backends: Sequence[Backend]) -> Iterator[tuple[Root, Backend, bytes]]:
    for root in survey.roots:
        blobs = {binding.backend: binding.blob for binding in root.head.bindings}
        for backend in backends:
            if backend.name in blobs:
                yield root, backend, blobs[backend.name]


def _opened(known: dict[tuple[str, bytes], Opened | VaultError], backend: Backend, blob: bytes) -> Opened:
    """Asked once for one blob: it may take seconds, or wear out what guards a TPM against guessing."""
    if (backend.name, blob) not in known:
        try:
            known[backend.name, blob] = backend.open(blob)
        except VaultError as error:
            known[backend.name, blob] = error
    outcome = known[backend.name, blob]
    if isinstance(outcome, VaultError):
        raise outcome
    return outcome


def _latest(found: Unlocked, survey: Survey) -> Unlocked:
    """A later root may have the same key, although none of its bindings opened."""
    for root in survey.roots:
        if root is found.root:
            return found
        try:
            ring = keyring.unlock(root, found.ring.key, survey.records)
        except SealError:
            warning = f"a later state of the file does not open; this is generation {found.root.head.generation}"
            found = replace(found, passed_over=True, warnings=(*found.warnings, warning))
            continue
        return replace(found, ring=ring, root=root)
    raise AssertionError("it is one of them")


def _alone(found: Unlocked, survey: Survey) -> Unlocked:
    """Whoever mixed up two vaults wants the other one back."""
    if all(root.head.vault == found.root.head.vault for root in survey.roots):
        return found
    warning = "the file of another vault lay beside it, and is kept as `.replaced`"
    return replace(found, passed_over=True, warnings=(*found.warnings, warning))


def _weaker(found: Unlocked, backends: Sequence[Backend], problems: dict[str, VaultError]) -> Iterator[str]:
    """A weaker backend is never used silently."""
    bound = {binding.backend for binding in found.root.head.bindings}
    for backend in backends:
        if backend.promise.strength <= found.promise.strength:
            continue
        if backend.name in problems:
            yield f"opened with {found.by}, because {backend.name} did not: {problems[backend.name].message}"
        elif backend.name not in bound:
            yield f"opened with {found.by}; {backend.name} is stronger and not bound"


def _locked(survey: Survey, backends: Sequence[Backend], problems: dict[str, VaultError]) -> BindingError:
    if problems:
        why = "; ".join(f"{name}: {error.message}" for name, error in problems.items())
        remedies = dict.fromkeys(error.remedy for error in problems.values() if error.remedy)
        if not any(_COMMAND in remedy for remedy in remedies):
            remedies[RECOVER] = None
        return BindingError(f"the vault does not open. {why}", " ".join(remedies))
    bound = ", ".join(binding.backend for binding in survey.roots[0].head.bindings) or "nothing"
    offered = ", ".join(backend.name for backend in backends) or "nothing"
    return BindingError(f"the vault is bound to {bound}, and this box offers {offered}", RECOVER)
