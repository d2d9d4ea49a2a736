"""The first version of every role, and later ones with other keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Role, Root, Snapshot, Targets, Timestamp

from ota.errors import PublishError
from ota.publish.workshop import Workshop
from ota.trust import OS_RELEASE, TRAINER_MODELS, models_role

THRESHOLDS = {Root.type: 3, Targets.type: 2, OS_RELEASE: 2}
TRAINERS = 2  # the trainer and the evaluation gate, both
_SHARED = "a key of those who make models is used elsewhere"


@dataclass(frozen=True)
class People:
    """Public keys by what they sign. `courier`: an offline key for what goes on sticks."""

    root: tuple[Key, ...]
    targets: tuple[Key, ...]
    release: tuple[Key, ...]
    online: Key
    courier: Key
    trainers: Mapping[str, tuple[Key, ...]]  # by fleet: the trainer's and the gate's


def found(workshop: Workshop, people: People) -> None:
    """Stage the first version of every role, a trainer-models for each fleet. PublishError: too few keys, or shared."""
    _check(people)
    moving = (people.online, people.courier)
    root = Root(consistent_snapshot=True)
    for role, keys in (
        (Root.type, people.root),
        (Targets.type, people.targets),
        (Snapshot.type, moving),
        (Timestamp.type, moving),
    ):
        root.roles[role] = Role([], THRESHOLDS.get(role, 1))
        for key in keys:
            root.add_key(key, role)
    targets = Targets(delegations=Delegations({}, {}))
    _delegate(targets, OS_RELEASE, "os/*", people.release, THRESHOLDS[OS_RELEASE])
    for fleet, keys in people.trainers.items():
        _delegate(targets, models_role(fleet), f"models/{fleet}/*", keys, TRAINERS)
    workshop.stage(Root.type, root)
    workshop.stage(Targets.type, targets)
    for role in (OS_RELEASE, *map(models_role, people.trainers)):
        workshop.stage(role, Targets())


def add_fleet(workshop: Workshop, fleet: str, keys: tuple[Key, ...]) -> None:
    """One more fleet: the targets role must sign it, and its own people."""
    targets = workshop.targets(Targets.type)
    _delegate(targets, models_role(fleet), f"models/{fleet}/*", keys, TRAINERS)
    workshop.stage(Targets.type, targets)
    workshop.stage(models_role(fleet), Targets())


def rotate(workshop: Workshop, role: str, add: Iterable[Key], remove: Iterable[str]) -> list[str]:
    """Other keys for a role. What is staged, because it must be signed anew."""
    top = role in (Root.type, Targets.type, Snapshot.type, Timestamp.type)
    delegator: Root | Targets = workshop.root() if top else workshop.targets(Targets.type)
    try:
        threshold = delegator.get_delegated_role(role).threshold
        for key in add:
            delegator.add_key(key, role)
        for keyid in remove:
            delegator.revoke_key(keyid, role)
    except ValueError as error:
        raise PublishError(f"{role}: {error}", "Look at `millwright-publish status`.") from error
    left = len(delegator.get_delegated_role(role).keyids)
    if left < threshold:
        raise PublishError(f"{role} would have {left} keys and needs {threshold}", "Add a key for each that goes.")
    _keep_apart(workshop, delegator)
    delegator_role = Root.type if top else Targets.type
    workshop.stage(delegator_role, delegator)
    staged = [delegator_role]
    if role not in (Root.type, Snapshot.type, Timestamp.type):
        # What the old keys signed no longer counts.
        workshop.stage(role, delegator if role == Targets.type and not top else workshop.targets(role))
        staged.append(role)
    return staged


def _keep_apart(workshop: Workshop, changed: Root | Targets) -> None:
    """PublishError where a key of those who make models signs anything else."""
    root = changed if isinstance(changed, Root) else workshop.root()
    delegations = (changed if isinstance(changed, Targets) else workshop.targets(Targets.type)).delegations
    makers, others = set[str](), {keyid for role in root.roles.values() for keyid in role.keyids}
    for name, role in ((delegations.roles if delegations else None) or {}).items():
        (makers if name.startswith(TRAINER_MODELS) else others).update(role.keyids)
    if makers & others:
        raise PublishError(_SHARED, "Whoever trains signs nothing else.")


def _delegate(targets: Targets, role: str, path: str, keys: Iterable[Key], threshold: int) -> None:
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    targets.delegations.roles[role] = DelegatedRole(role, [], threshold, terminating=True, paths=[path])
    for key in keys:
        targets.add_key(key, role)


def _check(people: People) -> None:
    for role, keys, needed in (
        (Root.type, people.root, 5),
        (Targets.type, people.targets, 3),
        (OS_RELEASE, people.release, 3),
        *((models_role(fleet), keys, TRAINERS) for fleet, keys in people.trainers.items()),
    ):
        if len({key.keyid for key in keys}) < needed:
            raise PublishError(f"{role} needs {needed} different keys", "Each in the hands of another person.")
    makers = {key.keyid for keys in people.trainers.values() for key in keys}
    others = {key.keyid for key in (*people.root, *people.targets, *people.release, people.online, people.courier)}
    if makers & others:
        raise PublishError(_SHARED, "Whoever trains signs nothing else.")
