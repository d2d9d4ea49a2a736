"""millwright-publish: makes a repository of updates, as static files for any web server.

    millwright-publish key FILE                            a key of one's own, and FILE.pub for the others
    millwright-publish fleetkey FILE                       a key that a fleet opens its models with, and FILE.pub
    millwright-publish init WORKSHOP --fleet F ...         the roles and who signs them
    millwright-publish add WORKSHOP BUNDLE --fleet F       a model
    millwright-publish add WORKSHOP FILE.image --system    a release of the system, its parts beside it
    millwright-publish delta WORKSHOP --fleet F NAME       deltas from the last versions, where they are worth it
    millwright-publish campaign WORKSHOP --fleet F FILE    who takes which version, and when
    millwright-publish seal WORKSHOP --fleet F --to FILE   models of this fleet are encrypted from now on
    millwright-publish sign WORKSHOP --key K               a signature to what waits; publishes what has enough
    millwright-publish rotate WORKSHOP ROLE --add K --remove KEYID
    millwright-publish usb WORKSHOP STICK --key K          the repository on a stick, signed for longer
    millwright-publish prune WORKSHOP                      what nobody needs any more goes from the web server
    millwright-publish status WORKSHOP                     what is published and what waits for whom

Keys are files, encrypted, or tokens (`hsm:2?label=T`, with PYKCS11LIB). The passphrase is asked for, or taken from the
environment's MILLWRIGHT_PASSPHRASE.
"""

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from msgspec.structs import replace
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from ota import courier
from ota.courier import Receipt
from ota.errors import OtaError, PublishError
from ota.manifest import Needs
from ota.publish import founding, goods, keys, pruning, returns, sealing, systems
from ota.publish.founding import People
from ota.publish.workshop import Settings, Workshop
from ota.trust import OS_RELEASE, models_role

PASSPHRASE = "MILLWRIGHT_PASSPHRASE"
_MADE = {"root": 5, "targets": 3, "release": 3, "online": 1, "courier": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 it cannot be, 2 wrong usage."""
    options = _parser().parse_args(argv)
    try:
        with _turn(options):
            options.run(options)
    except OtaError as error:
        print(f"millwright-publish: {error}", file=sys.stderr)
        return 1
    return 0


def secret(of: str) -> str:
    """The passphrase of a key, from the environment or the terminal."""
    found = os.environ.get(PASSPHRASE)
    return found if found is not None else getpass.getpass(f"{of}: passphrase or PIN: ")


def _turn(options: argparse.Namespace) -> AbstractContextManager[None]:
    """A trainer at night and a person by day take turns."""
    if not (options.changes and options.workshop.is_dir()):
        return nullcontext()
    told = f"{options.workshop}: another millwright-publish is at work here; waiting for it"
    return Workshop(options.workshop).held(lambda: print(told, file=sys.stderr, flush=True))


# ---- the verbs ------------------------------------------------------------------------------------------------------


def _key(options: argparse.Namespace) -> None:
    if options.key.startswith(keys.TOKEN):
        keys.write_public(keys.public(options.key, secret), Path(f"{options.pub or 'token'}.pub"))
    else:
        keys.create(Path(options.key), secret)


def _fleetkey(options: argparse.Namespace) -> None:
    made = sealing.create(options.key)
    print(f"recipient {made}\n{options.key}: for the vaults of the fleet's boxes alone; keep a copy offline")


def _seal(options: argparse.Namespace) -> None:
    workshop, fleet = Workshop(options.workshop), _fleet(options)
    workshop.targets(models_role(fleet))
    lines = tuple(sealing.read_public(path) for path in options.to or ())
    workshop.configure(replace(workshop.settings, sealed={**workshop.settings.sealed, fleet: lines}))
    named = ", ".join(sealing.recipients(lines))
    print(f"{fleet}: what is added from now on is {f'encrypted for {named}' if named else 'not encrypted'}")


def _init(options: argparse.Namespace) -> None:
    workshop = Workshop(options.workshop)
    if workshop.newest(Root.type) is not None:
        raise PublishError(f"{options.workshop} is a workshop already", "Change keys with `rotate`.")
    if options.make_keys:
        _make_keys(options)
    people = People(
        root=_publics(options.root),
        targets=_publics(options.targets),
        release=_publics(options.release),
        online=_one(options.online),
        courier=_one(options.courier),
        trainers={fleet: _publics(_trainers(options, fleet)) for fleet in options.fleet},
    )
    workshop.configure(Settings(online_key=options.online[0].removesuffix(".pub")))
    founding.found(workshop, people)
    _sign_and_release(workshop, options.key)


def _make_keys(options: argparse.Namespace) -> None:
    """All keys in one folder: to try it out. In earnest each is made by the one who keeps it."""
    folder: Path = options.make_keys
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for what, count in _MADE.items():
        names = [str(folder / (f"{what}-{number}" if count > 1 else what)) for number in range(1, count + 1)]
        setattr(options, what, names)
    options.trainer = [f"{fleet}={folder / f'trainer-{fleet}'}" for fleet in options.fleet]
    options.gate = [f"{fleet}={folder / f'gate-{fleet}'}" for fleet in options.fleet]
    made = [name for what in _MADE for name in getattr(options, what)]
    made += [name.partition("=")[2] for name in (*options.trainer, *options.gate)]
    for name in made:
        keys.create(Path(name), secret)
    options.key = [*(options.key or ()), *made]


def _trainers(options: argparse.Namespace, fleet: str) -> list[str]:
    given = [name.partition("=") for name in (*(options.trainer or ()), *(options.gate or ()))]
    return [name for one, _, name in given if one == fleet]


def _add(options: argparse.Namespace) -> None:
    workshop, needs = Workshop(options.workshop), Needs(options.millwright, options.memory, tuple(options.feature))
    if options.system:
        release = systems.add(workshop, options.source)
        print(f"{release.name} {release.version}: root {release.root.sha256}")
    else:
        added = goods.add_bundle(workshop, _fleet(options), options.source, needs)
        print(f"{added.name} {added.version}: {added.bundle}")
    _sign_and_release(workshop, options.key)


def _delta(options: argparse.Namespace) -> None:
    from ota.delta.making import make  # the codec is slow to import

    workshop, used = Workshop(options.workshop), None
    if options.receipts is not None:
        used = goods.in_use(_came_back(options) or (), options.name)
    for made in goods.add_deltas(workshop, _fleet(options), options.name, options.last, make, used):
        verdict = "kept" if made.kept else "not worth it, dropped"
        share = made.patch_bytes / made.whole_bytes
        print(f"from {made.base.version}: {made.patch_bytes:,} bytes, {share:.0%} of the whole: {verdict}")
    _sign_and_release(workshop, options.key)


def _campaign(options: argparse.Namespace) -> None:
    workshop = Workshop(options.workshop)
    came_back = _came_back(options)
    set_to = goods.set_campaign(workshop, _fleet(options), options.file.read_bytes(), came_back, options.resume)
    done = set_to.progress
    print(
        f"{set_to.id}: {len(set_to.waves)} waves of {set_to.model} {set_to.version}; "
        f"{done.confirmed} devices confirmed, {done.rolled_back} rolled back, {done.refused} refused"
    )
    if set_to.stopped:
        print(f"{set_to.id} stops: {set_to.reason or 'as the file says'}")
    _sign_and_release(workshop, options.key)


def _sign(options: argparse.Namespace) -> None:
    _sign_and_release(Workshop(options.workshop), options.key, renew=True)


def _rotate(options: argparse.Namespace) -> None:
    workshop = Workshop(options.workshop)
    staged = founding.rotate(workshop, options.role, _publics(options.add), options.remove or ())
    if options.online:
        workshop.configure(replace(workshop.settings, online_key=options.online))
    print(f"to be signed anew: {', '.join(staged)}")
    _sign_and_release(workshop, options.key)


def _usb(options: argparse.Namespace) -> None:
    workshop = Workshop(options.workshop)
    signer = keys.signer(options.key[0], secret)
    copied = goods.prepare_stick(workshop, options.stick, options.fleet, signer, _online(workshop), options.days)
    print(f"{options.stick}: {copied:,} bytes of updates, good for {options.days:g} days")


def _prune(options: argparse.Namespace) -> None:
    done = pruning.prune(Workshop(options.workshop), options.days * 86_400.0, rehearse=options.rehearse)
    for path in done.files:
        print(path)
    print(f"{len(done.files)} files, {done.bytes:,} bytes {'would go' if options.rehearse else 'are gone'}")


def _status(options: argparse.Namespace) -> None:
    workshop = Workshop(options.workshop)
    print(f"online key: {workshop.settings.online_key}")
    published = workshop.published(Targets.type)
    names = [Root.type, Targets.type, *(published.signed.delegations.roles if published else ()), Snapshot.type]
    for role in (*names, Timestamp.type):
        found = workshop.published(role)
        if found is not None:
            print(f"{role} {found.signed.version}, good until {found.signed.expires:%Y-%m-%d %H:%M} UTC")
    for role in workshop.waiting():
        print(f"{role} waits for {workshop.lacking(role)} signatures")


# ---- what they share ------------------------------------------------------------------------------------------------


def _sign_and_release(workshop: Workshop, names: Sequence[str] | None, renew: bool = False) -> None:
    """Sign what waits with each key; publish what has enough, if the online key is at hand."""
    for name in names or ():
        signer = keys.signer(name, secret)
        for role in workshop.waiting():
            if workshop.sign(role, signer):
                print(f"{role}: signed")
    if workshop.ready() or renew:
        released = workshop.release(_online(workshop))
        print(f"published: {', '.join([*released, *(Snapshot.type, Timestamp.type)])}")
    for role in workshop.waiting():
        lacking = workshop.lacking(role)
        print(f"{role} waits for {f'{lacking} signatures' if lacking else 'the roles below it'}")


def _came_back(options: argparse.Namespace) -> list[Receipt] | None:
    """Receipts; those alone that a box has signed, where an authority for boxes is named."""
    if options.receipts is None:
        return None
    given = list(courier.receipts(options.receipts))
    if options.authority is None:
        print(f"{len(given)} receipts; nobody looked at who wrote them: --authority CA.pem")
        return given
    counted = returns.signed_by_boxes(given, options.authority)
    print(f"{len(counted)} receipts; {len(given) - len(counted)} more are not signed by a box, and do not count")
    return counted


def _online(workshop: Workshop) -> list[Signer]:
    name = workshop.settings.online_key
    if not name.startswith(keys.TOKEN) and not Path(name).is_file():
        raise PublishError(f"the online key '{name}' is not here", "Publish where it is kept.")
    return [keys.signer(name, secret)]


def _fleet(options: argparse.Namespace) -> str:
    if not options.fleet:
        raise PublishError("no fleet was named", "Add --fleet NAME.")
    return str(options.fleet)


def _publics(names: Sequence[str] | None) -> tuple[Key, ...]:
    return tuple(keys.public(name, secret) for name in names or ())


def _one(names: Sequence[str] | None) -> Key:
    if not names:
        raise PublishError("the online and the courier key are missing", "Name both, or --make-keys FOLDER.")
    return keys.public(names[0], secret)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="millwright-publish", description="Makes a repository of updates.")
    parser.set_defaults(changes=False)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    key = verbs.add_parser("key", help="make a key; or write down the public half of a token's")
    key.add_argument("key", metavar="FILE")
    key.add_argument("--pub", metavar="NAME", help="of a token: write NAME.pub")
    key.set_defaults(run=_key)

    fleetkey = verbs.add_parser("fleetkey", help="make a key that a fleet opens its models with")
    fleetkey.add_argument("key", type=Path, metavar="FILE")
    fleetkey.set_defaults(run=_fleetkey)

    seal = _verb(verbs, "seal", _seal, "encrypt the models of a fleet from now on", keyed=False)
    seal.add_argument("--fleet", required=True, metavar="NAME")
    seal.add_argument("--to", type=Path, action="append", metavar="FILE.pub", help="the fleet's public key; none: stop")

    init = _verb(verbs, "init", _init, "found a repository")
    init.add_argument("--fleet", action="append", required=True, metavar="NAME")
    for what in ("root", "targets", "release"):
        init.add_argument(f"--{what}", nargs="+", metavar="KEY", help="public keys, or hsm: tokens")
    for what in ("online", "courier"):
        init.add_argument(f"--{what}", nargs=1, metavar="KEY")
    for what in ("trainer", "gate"):
        init.add_argument(f"--{what}", action="append", metavar="FLEET=KEY")
    init.add_argument("--make-keys", type=Path, metavar="FOLDER", help="make all keys here: to try it out")

    add = _verb(verbs, "add", _add, "add a model, or a release of the system")
    add.add_argument("source", type=Path, metavar="BUNDLE|FILE.image")
    add.add_argument("--fleet", metavar="NAME")
    add.add_argument("--system", action="store_true", help="a release of the system, made by `python -m ota.system`")
    add.add_argument("--millwright", default="0.0", metavar="VERSION", help="the oldest that can use it")
    add.add_argument("--memory", type=int, default=0, metavar="BYTES", help="that it takes")
    add.add_argument("--feature", action="append", default=[], help="that a box must have")

    delta = _verb(verbs, "delta", _delta, "make deltas to the newest version")
    delta.add_argument("name", metavar="NAME")
    delta.add_argument("--fleet", metavar="NAME")
    delta.add_argument("--last", type=int, default=3, metavar="N", help="versions to start from (3)")
    delta.add_argument("--receipts", type=Path, metavar="FOLDER", help="only from versions that are in use")
    delta.add_argument("--authority", type=Path, metavar="CA.pem", help="only receipts that its boxes have signed")

    campaign = _verb(verbs, "campaign", _campaign, "say who takes which version, and when")
    campaign.add_argument("file", type=Path, metavar="FILE")
    campaign.add_argument("--fleet", metavar="NAME")
    campaign.add_argument("--receipts", type=Path, metavar="FOLDER", help="sum up what came back")
    campaign.add_argument("--authority", type=Path, metavar="CA.pem", help="only receipts that its boxes have signed")
    campaign.add_argument("--resume", action="store_true", help="one that was stopped goes on")

    _verb(verbs, "sign", _sign, "sign what waits; publish what has enough")

    rotate = _verb(verbs, "rotate", _rotate, "other keys for a role")
    rotate.add_argument("role", help=f"root, targets, snapshot, timestamp, {OS_RELEASE}, trainer-models.FLEET")
    rotate.add_argument("--add", nargs="+", metavar="KEY")
    rotate.add_argument("--remove", nargs="+", metavar="KEYID")
    rotate.add_argument("--online", metavar="KEY", help="the online key from now on")

    usb = _verb(verbs, "usb", _usb, "put the repository on a stick")
    usb.add_argument("stick", type=Path, metavar="STICK")
    usb.add_argument("--fleet", action="append", metavar="NAME", help="only this one; all by default")
    usb.add_argument("--days", type=float, default=goods.STICK_DAYS, help="how long it is good for (90)")

    prune = _verb(verbs, "prune", _prune, "remove what no version names any more", keyed=False)
    prune.add_argument("--days", type=float, default=pruning.GRACE_DAYS, help="that it must have been replaced for (7)")
    prune.add_argument("--rehearse", action="store_true", help="only say what would go")

    status = _verb(verbs, "status", _status, "what is published and what waits", keyed=False)
    status.set_defaults(changes=False)
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: object, does: str, keyed: bool = True
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=does)
    parser.add_argument("workshop", type=Path, metavar="WORKSHOP")
    if keyed:
        parser.add_argument("--key", action="append", required=name == "usb", metavar="KEY", help="sign with this key")
    parser.set_defaults(run=run, changes=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
