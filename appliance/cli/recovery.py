"""Of `millwright vault`: what is done with recovery keys. Making a vault, opening it without its box, backups, who else
may open it."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import custody, instance
from appliance.errors import ConfigError, VaultError
from appliance.runtime import files

if TYPE_CHECKING:
    from appliance.vault.enrolment import Report
    from appliance.vault.port import Backend, Promise

DAY = 86_400_000_000_000  # ns
NOT_NOTED = 1  # exit code of `init`
MAX_LINES = 64 << 10


def register_init(verbs: Any) -> None:
    init = verbs.add_parser(
        "init", help="make a vault", description="Makes a vault, bound to this box, and shows its recovery key once."
    )
    _file_for_key(init)
    init.add_argument("--recipients", type=Path, metavar="FILE", help="who else may open it: lines of `recipients new`")
    init.set_defaults(run=run_init)


def register(verbs: Any) -> None:
    backup = verbs.add_parser("backup", help="write a backup, which only recovery keys read")
    backup.add_argument("file", type=Path, metavar="FILE")
    backup.set_defaults(run=run_backup)
    restore = verbs.add_parser("restore", help="make a vault of a backup")
    restore.add_argument("file", type=Path, metavar="FILE")
    restore.add_argument("--ticket", type=Path, metavar="FILE", help="allows it on another box than it was made on")
    restore.add_argument("--replace", action="store_true", help="set a vault aside that is here")
    _key_from(restore)
    restore.set_defaults(run=run_restore)
    ticket = verbs.add_parser("ticket", help="allow a backup to be restored on another box")
    ticket.add_argument("file", type=Path, metavar="BACKUP")
    ticket.add_argument("--box", required=True, metavar="ID", help="as `restore` on that box says it")
    ticket.add_argument("--days", type=int, default=7, metavar="N", help="for how long (default: 7)")
    ticket.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the ticket goes")
    _key_from(ticket)
    ticket.set_defaults(run=run_ticket)
    recover = verbs.add_parser("recover", help="open it with a recovery key, and bind it to this box anew")
    recover.add_argument("--accept-older", action="store_true", help="the file is known to be older than the latest")
    _key_from(recover)
    recover.set_defaults(run=run_recover)
    _recipients(verbs)


def _recipients(verbs: Any) -> None:
    parser = verbs.add_parser("recipients", help="whose recovery keys open it")
    what = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    what.add_parser("list", help="lines of text, one each").set_defaults(run=run_recipients)
    add = what.add_parser("add", help="one more")
    add.add_argument("file", type=Path, metavar="FILE", help="a file of recipients")
    add.set_defaults(run=run_add)
    remove = what.add_parser("remove", help="one less: opens nothing that is written from then on")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=run_dismiss)
    new = what.add_parser("new", help="a recovery key kept elsewhere, for escrow: needs no vault")
    new.add_argument("name", metavar="NAME", help="of who keeps it")
    _file_for_key(new)
    new.set_defaults(run=run_new)


def _file_for_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recovery-file", type=Path, metavar="FILE", help="where the recovery key goes, unseen")


def _key_from(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recovery-file", type=Path, metavar="FILE", help="the recovery key (default: it is asked for)"
    )


def run_init(args: argparse.Namespace) -> int:
    from appliance import assembly, binding
    from appliance.vault import chest
    from appliance.vault.opening import OpenVault
    from appliance.vault.recovery import read_recipients

    config, document = instance.configuration(args)
    if assembly.has_vault(config):
        raise VaultError("there is a vault already", "See it: millwright vault status.")
    recipients = read_recipients(_text(args.recipients)) if args.recipients else ()
    box = binding.Box(config, document)
    backend = box.backend()
    _tell_promise(backend, box.warnings, box.report(backend.name))
    handout = custody.Handout(args.recovery_file)
    try:
        name = box.name()
        made, key = chest.create(
            box.folder, backend, config.vault.suite, recipients, box.counter(), time.time_ns, box=name
        )
    except BaseException:
        handout.withdraw()
        raise
    with OpenVault(made, box.audit_counter(), box.folder, time.time_ns) as vault:
        vault.audit.note(str(custody.me()), "vault.init", "", "done", {"backend": backend.name})
    if handout.give(key.printed()):
        print(f"The vault is in {box.folder}, bound by '{backend.name}'. Next: millwright vault put mqtt/plant")
        return 0
    print("The vault is made, but nobody has its recovery key. For another one: millwright vault rotate recovery")
    return NOT_NOTED


def _tell_promise(backend: "Backend", warnings: tuple[str, ...], found: "Report | None") -> None:
    promise: Promise = backend.promise
    print(f"bound by '{backend.name}'")
    print(
        "\n".join(
            [*(f"  protects  {one}" for one in promise.protects), *(f"  does not  {one}" for one in promise.does_not)]
        )
    )
    for line in (*reported(found), *(f"  warning   {line}" for line in warnings)):
        print(line)


def reported(found: "Report | None") -> list[str]:
    """What a key is made of, for a person."""
    from appliance.services.words import columns

    if found is None:
        return []
    rows = [("  part", "bits", ""), *((f"  {what}", bits, why) for what, bits, why in found.table())]
    return [*columns(rows), *(f"  warning   {line}" for line in found.warnings)]


def run_recover(args: argparse.Namespace) -> int:
    from appliance import binding
    from appliance.vault import chest
    from appliance.vault.opening import OpenVault

    config, document = instance.configuration(args)
    box = binding.Box(config, document)
    backend = box.backend()
    key = custody.recovery_key(args.recovery_file)
    opened = chest.recover(box.folder, key, backend, box.counter(), time.time_ns, accept_older=args.accept_older)
    with OpenVault(opened, box.audit_counter(), box.folder, time.time_ns) as vault:
        vault.audit.note(str(custody.me()), "vault.recover", "", "done", {"backend": backend.name})
        status = vault.custody.status()
    print(f"opened, under a new key that is bound to this box by '{backend.name}'; {status.secrets} secrets")
    for line in (*box.warnings, *status.warnings):
        print(f"warning: {line}")
    return 0


def run_backup(args: argparse.Namespace) -> int:
    from appliance.vault import backup

    with custody.opened(args) as vault:
        made = vault.backup()
    files.write_atomic(args.file.absolute(), made)
    facts = backup.inspect(made)
    print(f"{args.file}: {facts.secrets} secrets; reads it: {', '.join(facts.recipients)}")
    return 0


def run_restore(args: argparse.Namespace) -> int:
    from appliance import binding
    from appliance.vault import backup
    from appliance.vault.audit import journal

    config, document = instance.configuration(args)
    box = binding.Box(config, document)
    data = _bytes(args.file)
    facts, name, backend = backup.inspect(data), box.name(), box.backend()
    if facts.box != name and args.ticket is None:
        raise VaultError(
            f"the backup was made on box '{facts.box}', this is '{name}'",
            f"Allow it with a recovery key: millwright vault ticket {args.file} --box {name} --out FILE",
        )
    ticket = _bytes(args.ticket) if args.ticket else None
    key = custody.recovery_key(args.recovery_file)
    report = backup.restore(
        box.folder, data, key, ticket, name, backend, box.counter(), time.time_ns, replacing=args.replace
    )
    # Another vault has another key: it cannot sign on where this box's earlier one has ended.
    noted = journal.set_aside(box.folder / journal.FOLDER) if facts.box != name else None
    with binding.unlock(config, document) as vault:
        detail = {"backup": facts.vault, "box": facts.box, "allowed_by": report.allowed_by}
        vault.audit.note(str(custody.me()), "vault.restore", "", "done", detail)
    print("\n".join(report.did))
    if noted:
        print(f"kept the journal that was there as {noted.name}")
    for missing in report.missing:
        print(f"warning: {missing} is damaged in the backup, and missing")
    return 0


def run_ticket(args: argparse.Namespace) -> int:
    from appliance.vault import backup

    if not 1 <= args.days <= 3650:
        raise ConfigError(f"{args.days} is no number of days", "Use 1 to 3650.")
    data, now = _bytes(args.file), time.time_ns()
    key = custody.recovery_key(args.recovery_file)
    made = backup.ticket(data, key, args.box, now, now + args.days * DAY)
    files.write_atomic(args.out.absolute(), made)
    print(f"{args.out}: allows box '{args.box}' to restore {args.file} within {args.days} days")
    return 0


def renew(args: argparse.Namespace) -> int:
    """`rotate recovery`."""
    handout = custody.Handout(args.recovery_file)
    try:
        with custody.opened(args) as vault:
            printed = vault.renew_recovery().reveal().decode()
    except BaseException:
        handout.withdraw()
        raise
    if handout.give(printed):
        print("The old recovery key opens nothing that is written from now on.")
        return 0
    print("It is renewed, but nobody has it. For another one: millwright vault rotate recovery")
    return NOT_NOTED


def run_recipients(args: argparse.Namespace) -> int:
    with custody.opened(args) as vault:
        print("\n".join(vault.recipients()))
    return 0


def run_add(args: argparse.Namespace) -> int:
    line = _text(args.file)
    with custody.opened(args) as vault:
        vault.add_recipient(line)
        print("\n".join(vault.recipients()))
    return 0


def run_dismiss(args: argparse.Namespace) -> int:
    with custody.opened(args) as vault:
        vault.remove_recipient(args.name)
    print(f"{args.name} opens nothing that is written from now on; backups it could read, it reads still.")
    return 0


def run_new(args: argparse.Namespace) -> int:
    from appliance.vault.recovery import RecoveryKey, checked_name

    checked_name(args.name)
    handout = custody.Handout(args.recovery_file)
    key = RecoveryKey.new()
    if not handout.give(key.printed()):
        print("Nobody has that key: it is not used.")
        return NOT_NOTED
    print(key.recipient(args.name).line())
    return 0


def _text(path: Path) -> str:
    return _bytes(path, MAX_LINES).decode("utf-8", "replace")


def _bytes(path: Path, limit: int = 1 << 30) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise ConfigError(f"{path} has more than {limit} bytes", "Name another file.")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "Name another file.") from None
