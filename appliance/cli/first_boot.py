"""`millwright first-boot`: makes a box out of an image: the seed applied, the vault made, certificates issued.

It looks for a seed, one TOML file called millwright-seed.toml, on a stick labelled MWSEED and on the boot partition. A
seed is checked whole before anything is changed, applied, and then wiped. Without one the box is set up with what the
image says; a new box waits 12 seconds for a stick first. It may be called at every boot, and goes on where the power
was cut.

What flash keeps of a wiped file in its spare cells is out of reach: where a stick may have been copied or is lost,
change the secrets that were on it.

Exit codes: 0 done, or nothing to do; 1 the seed could not be wiped; 2 the seed is wrong: nothing of it was applied;
5 the vault cannot be made or does not open.
"""

import argparse
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli import custody, instance, sowing
from appliance.errors import ConfigError, MillwrightError, StoreError, VaultError
from appliance.runtime import files

if TYPE_CHECKING:
    from appliance.config.document import Document
    from appliance.config.schema import Config
    from appliance.config.seed import Seed
    from appliance.config.seeding import Outcome
    from appliance.vault.port import Promise

NOT_WIPED, WRONG = 1, 2
NOTHING = ""  # the digest of no seed


@dataclass
class Site:
    """What the steps work on."""

    root: Path
    args: argparse.Namespace  # of `instance.configuration`, with the box's configuration in it
    outcome: "Outcome"
    place: Path | None
    journal: sowing.Journal
    screens: sowing.Screens


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "first-boot",
        help="make a box out of an image: its seed, its vault, its certificates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=Path, metavar="PATH", help="this file and no other")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="of the box's files (default: /)")
    parser.add_argument(
        "--console", type=Path, action="append", default=[], metavar="PATH", help="tell it here (default: /dev/console)"
    )
    parser.add_argument("--vault-owner", default="", metavar="USER", help="the user that the vault runs as (root)")
    parser.add_argument("--again", action="store_true", help="take a seed after the first boot, too")
    parser.add_argument("--check", action="store_true", help="look for mistakes in the seed, and change nothing")
    parser.add_argument("--reference", action="store_true", help="print every key of a seed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.reference:
        from appliance.config.seed import reference

        print(reference(), end="")
        return 0
    screens = sowing.Screens(args.root, args.console)
    try:
        with sowing.found(args.root, args.seed, _patience(args)) as place:
            return _checked(place) if args.check else _set_up(args, place, screens)
    except ConfigError as error:
        screens.tell("The seed was not applied:", str(error))
        return WRONG
    except MillwrightError as error:
        screens.tell("The box could not be set up; it is tried again at the next boot:", str(error))
        return error.exit_code


def _patience(args: argparse.Namespace) -> sowing.Patience:
    """A stick may come up later than this. One that is missed is never taken, as a box that was set up takes no seed:
    so a new one waits. Below another root no stick comes up."""
    if args.check or args.root != Path("/"):
        return sowing.ONE_LOOK
    return sowing.ONE_LOOK if sowing.Journal(_state(args)).progress.finished else sowing.NEW_BOX


def _checked(place: Path | None) -> int:
    if place is None:
        raise ConfigError("there is no seed", "Name one with --seed.")
    _understood(place)
    print(f"{place}: in order")
    return 0


def _set_up(args: argparse.Namespace, place: Path | None, screens: sowing.Screens) -> int:
    state = _state(args)
    with files.held(state / "first-boot.lock", "sets up the box"):
        journal = sowing.Journal(state)
        if _wiping(journal, place):
            return _wiped(journal, place, screens)
        if journal.progress.finished and not _wanted(args, journal, place, screens):
            return 0
        _missed(journal, place)
        seed, outcome, digest = _understood(place) if place else (None, _without_seed(), NOTHING)
        journal.begin(digest, str(place or ""), seed.later if seed else journal.progress.later)
        return _carried_out(Site(args.root, args, outcome, place, journal, screens))


def _state(args: argparse.Namespace) -> Path:
    """The folder, by the configuration that is named, else that of the box."""
    config = args.root / "etc/millwright/millwright.toml"
    args.config = config if args.config is None and config.exists() else args.config
    return instance.configuration(args)[0].paths.state


def _wanted(args: argparse.Namespace, journal: sowing.Journal, place: Path | None, screens: sowing.Screens) -> bool:
    """Whether a seed that comes after the first boot is taken."""
    if place is None:
        print("This box is set up.")
        return False
    if args.again or journal.progress.later:
        return True
    screens.tell(
        f"{place} was not read: this box is set up, and its seed did not say later = true.",
        "  -> On the box: millwright first-boot --again",
    )
    return False


def _missed(journal: sowing.Journal, place: Path | None) -> None:
    """ConfigError where a seed was begun and its stick is gone: finished without it, the box would lack the rest."""
    progress = journal.progress
    if place is None and progress.seed and "applied" not in progress.steps:
        problem = f"the seed {progress.place} was applied in part, and is gone"
        raise ConfigError(problem, "Plug it in again, or another one, and start the box again.")


def _understood(place: Path) -> "tuple[Seed, Outcome, str]":
    """ConfigError names file, line and key of a mistake, wherever it is."""
    from appliance.config import seed as seeds
    from appliance.config import seeding

    with place.open("rb") as file:
        raw = file.read(seeds.MAX_BYTES + 1)
    seed, document = seeds.parse(str(place), raw)
    _check(seed, document)
    return seed, seeding.outcome(seed), sowing.digest(raw)


def _check(seed: "Seed", document: "Document") -> None:
    """As far as other parts of the box have a say."""
    from appliance.config.schema import Config
    from appliance.connectors import configured
    from appliance.vault.recovery import read_recipients

    document.into(Config, seed.config, ("config",))
    configured(document, seed.connectors)
    try:
        read_recipients("\n".join(seed.recovery.recipients))
    except VaultError as error:
        raise document.error(("recovery", "recipients"), error.message, error.remedy) from None


def _without_seed() -> "Outcome":
    from appliance.config import seeding
    from appliance.config.seed import Seed

    return seeding.outcome(Seed())


# ---- the steps ------------------------------------------------------------------------------------------------------


def _carried_out(site: Site) -> int:
    steps: tuple[tuple[str, Callable[[Site], None]], ...] = (
        ("files", _files),
        ("vault", _vault),
        ("secrets", _secrets),
        ("certificates", _certificates),
    )
    for name, step in steps:
        if name not in site.journal.progress.steps or name == "vault":  # which has a step of its own within
            step(site)
            site.journal.done(name)
    _given(site)
    site.journal.done("applied")
    return _wiped(site.journal, site.place, site.screens)


def _files(site: Site) -> None:
    """Each is written whole; those of an earlier seed that this one has not are removed."""
    from appliance.config import seeding

    kept = {file.path for file in site.outcome.files}
    folder = site.root / seeding.NETWORKS.lstrip("/")
    for path in sorted(folder.iterdir()) if kept and folder.is_dir() else ():
        if seeding.is_networks(path.name) and f"{seeding.NETWORKS}/{path.name}" not in kept:
            path.unlink()
    for file in site.outcome.files:
        _written(site.root / file.path.lstrip("/"), file.content, file.mode)
    if site.outcome.tables:
        _configured(site, site.root / seeding.CONFIG.lstrip("/"))


def _configured(site: Site, path: Path) -> None:
    from appliance.cli.config import toml
    from appliance.config import layers
    from appliance.config.document import Document
    from appliance.config.schema import Config

    before = Document.read(path).tables if path.exists() else {}  # without its base, which stays the image's word
    text = toml(layers.merged(before, site.outcome.tables))
    made = layers.layered(Document(str(path), text))
    made.into(Config, made.tables)
    _written(path, text, 0o644)
    site.args.config = path


def _written(path: Path, content: str, mode: int) -> None:
    if path.exists() and path.read_bytes() == content.encode():
        return
    missing = [parent for parent in path.parents if not parent.exists()]
    files.write_atomic(path, content.encode(), mode)
    for folder in missing:
        folder.chmod(0o755)  # what others read, networkd and sshd, lies here
    path.chmod(mode)


def _vault(site: Site) -> None:
    """Made, and its recovery key shown. A key that was made and not shown is replaced by one that is."""
    from appliance import assembly

    config, document = instance.configuration(site.args)
    if not assembly.has_vault(config):
        _made(site, config, document)
    if "key" not in site.journal.progress.steps:
        with custody.opened(site.args) as vault:
            _shown(site, vault.renew_recovery().reveal().decode())
            site.journal.done("key")
    with custody.opened(site.args) as vault:
        known = set(vault.recipients())
        for line in site.outcome.recipients:
            if line not in known:
                vault.add_recipient(line)


def _made(site: Site, config: "Config", document: "Document") -> None:
    from appliance import binding
    from appliance.runtime import seclusion
    from appliance.vault import chest
    from appliance.vault.recovery import read_recipients

    seclusion.no_core_dumps()
    box = binding.Box(config, document)
    backend = box.backend()
    recipients = read_recipients("\n".join(site.outcome.recipients))
    counter, name = box.counter(), box.name()
    _, key = chest.create(box.folder, backend, config.vault.suite, recipients, counter, time.time_ns, box=name)
    site.screens.tell(f"The vault is made, bound by '{backend.name}'.", *_promised(backend.promise, box.warnings))
    _shown(site, key.printed())
    site.journal.done("key")


def _promised(promise: "Promise", warnings: tuple[str, ...]) -> list[str]:
    return [f"  does not protect from: {one}" for one in promise.does_not] + [f"  warning: {one}" for one in warnings]


def _shown(site: Site, printed: str) -> None:
    shown = site.screens.show(
        "", "The recovery key opens the vault without this box. It is shown once, here:", "", printed, "",
        "Write it down, on paper, and keep it away from the box.", "",
    )  # fmt: skip
    if not shown:
        remedy = "for one that is: millwright vault rotate recovery"
        others = "; the seed's recipients can open it" if site.outcome.recipients else ""
        site.screens.tell(
            f"The vault's recovery key was shown to nobody: there is no screen{others}.", f"  -> {remedy}"
        )


def _secrets(site: Site) -> None:
    from appliance.vault.secret import Secret

    if not site.outcome.secrets:
        return
    with custody.opened(site.args) as vault:
        known = {entry.name for entry in vault.entries()}
        for name, value in site.outcome.secrets.items():
            if name not in known or vault.get(name).reveal() != value.encode():
                vault.put(name, Secret(value.encode()))
    site.screens.tell(f"Secrets of the seed that are in the vault: {len(site.outcome.secrets)}")


def _certificates(site: Site) -> None:
    """The box's own authority, and the certificate of its door where one is open."""
    from appliance import assembly
    from appliance.vault.certificates.holdings import Holdings

    config, _ = instance.configuration(site.args)
    with custody.opened(site.args) as vault:
        host = _host(site.root)
        holdings = Holdings(vault, host, assembly.believed_time)
        holdings.authority()
        if config.broker.tls_port:
            holdings.server(config.broker.tls_names or [host, f"{host}.local", "localhost", "127.0.0.1"])


def _given(site: Site) -> None:
    """The vault's files, made by root, to who will open it. ConfigError where there is no such user."""
    from appliance.vault import opening

    owner = site.args.vault_owner
    if not owner:
        return
    folder = instance.configuration(site.args)[0].paths.state / opening.FOLDER
    try:
        for path in (folder, *sorted(folder.rglob("*"))):
            shutil.chown(path, owner, owner)
    except LookupError as error:
        raise ConfigError(f"{error}", "Name a user with --vault-owner.") from None
    except OSError as error:
        raise StoreError(f"{folder} cannot be given to '{owner}': {error.strerror}", "Run it as root.") from error


def _host(root: Path) -> str:
    path = root / "etc/hostname"
    return (path.read_text("utf-8").strip() if path.exists() else "") or socket.gethostname()


# ---- the end --------------------------------------------------------------------------------------------------------


def _wiping(journal: sowing.Journal, place: Path | None) -> bool:
    """Whether all was applied of the seed that lay here, and what is left of it is to be wiped."""
    progress = journal.progress
    if "applied" not in progress.steps or "wiped" in progress.steps:
        return False
    return place is None or sowing.is_left(place, progress.seed)


def _wiped(journal: sowing.Journal, place: Path | None, screens: sowing.Screens) -> int:
    if place is not None:
        try:
            sowing.wipe(place)
        except StoreError as error:
            screens.tell("All of the seed was applied.", str(error))
            return NOT_WIPED
        screens.tell(f"The seed {place.name} was applied and wiped.")
    journal.done("wiped")
    journal.finish()
    return 0
