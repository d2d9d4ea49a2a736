"""`millwright vault`: secrets that open on this box only.

millwright vault init                       make it, and write the recovery key down
millwright vault put mqtt/plant             a password, typed without being shown, or from a pipe
millwright vault rotate key                 new keys for everything, while all services run

The configuration names a secret: password = {vault = "mqtt/plant"}.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import plugins
from appliance.cli import auditing, custody, instance, recovery
from appliance.errors import ConfigError, VaultError

if TYPE_CHECKING:
    from appliance.vault.port import Status

LAYERS = ("binding", "key", "namespace", "secret", "recovery")
DAMAGED = 1  # exit code of `status`


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "vault",
        help="keep secrets, rotate keys, back up, recover",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    recovery.register_init(verbs)
    _status(verbs)
    _secrets(verbs)
    _rotate(verbs)
    recovery.register(verbs)
    _policy(verbs)
    auditing.register(verbs)


def _status(verbs: Any) -> None:
    status = verbs.add_parser("status", help="how it is, what it protects from and what not")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=run_status)


def _secrets(verbs: Any) -> None:
    put = verbs.add_parser("put", help="keep a secret: typed, from standard input, or a file")
    put.add_argument("name", metavar="NAME", help="namespace/name, like mqtt/plant")
    put.add_argument("--file", type=Path, metavar="FILE", help="its content, as it is")
    put.add_argument("--exact", action="store_true", help="as it comes: with the end of its line, or empty")
    put.set_defaults(run=run_put)
    get = verbs.add_parser("get", help="write a secret to standard output, as it is")
    get.add_argument("name", metavar="NAME")
    get.add_argument("--show", action="store_true", help="even to a terminal")
    get.set_defaults(run=run_get)
    listing = verbs.add_parser("list", help="the names of what it keeps")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only names that begin so")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)
    remove = verbs.add_parser("remove", help="forget a secret, for good")
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--yes", action="store_true", help="without asking")
    remove.set_defaults(run=run_remove)


def _rotate(verbs: Any) -> None:
    rotate = verbs.add_parser(
        "rotate",
        help="new keys, while everything runs",
        description="binding: what ties the key to this box. key: the key of all, and what ties it. namespace NAME: "
        "its key and all its secrets. secret NAME: one. recovery: the recovery key; what is written from then on does "
        "not open with the old one.",
    )
    rotate.add_argument("layer", choices=LAYERS)
    rotate.add_argument("name", metavar="NAME", nargs="?", default="")
    rotate.add_argument("--recovery-file", type=Path, metavar="FILE", help="for `recovery`: where the new key goes")
    rotate.set_defaults(run=run_rotate)


def _policy(verbs: Any) -> None:
    policy = verbs.add_parser("policy", help="who may do what")
    what = policy.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = what.add_parser("check", help="look for mistakes in a file of rules")
    check.add_argument("path", metavar="FILE", nargs="?", type=Path, help="(default: the one that vault.policy names)")
    check.set_defaults(run=run_policy_check)
    show = what.add_parser("show", help="who may read and write a secret, or all of them")
    show.add_argument("name", metavar="NAME", nargs="?", default="")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=run_policy_show)


def run_status(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text

    with custody.opened(args) as vault:
        status = vault.status()
    print(json_text(status) if args.json else "\n".join((*told(status), *parts(args, status.backend))))
    return DAMAGED if status.damaged else 0


def parts(args: argparse.Namespace, backend: str) -> list[str]:
    """As `init` told it, for the box as it is now."""
    from appliance import binding

    if backend not in plugins.names(binding.BACKENDS):  # a recovery key opened it
        return []
    try:
        return recovery.reported(binding.Box(*instance.configuration(args)).report(backend))
    except VaultError as error:  # the vault is open all the same
        return [f"warning   {error.message}"]


def told(status: "Status") -> list[str]:
    """For a person; the limits, too."""
    anchored = "a counter off the disk" if status.anchored else "nothing: an older copy of its file would open"
    return [
        f"vault     {status.vault}, {status.suite}, {status.secrets} secrets, written {status.generation} times",
        f"opened by {status.backend}; opens with: {', '.join(status.bindings)}",
        f"compared  with {anchored}",
        *(f"protects  {line}" for line in status.promise.protects),
        *(f"does not  {line}" for line in status.promise.does_not),
        *(f"damaged   {name}: put it again, or restore a backup" for name in status.damaged),
        *(f"warning   {line}" for line in status.warnings),
    ]


def run_put(args: argparse.Namespace) -> int:
    from appliance.vault.policy import check_name

    check_name(args.name)
    content = custody.secret_from(args.file, args.name, args.exact)
    with custody.opened(args) as vault:
        entry = vault.put(args.name, content)
    print(f"{entry.name}: version {entry.version}, {entry.size} bytes")
    return 0


def run_get(args: argparse.Namespace) -> int:
    if sys.stdout.isatty() and not args.show:
        raise ConfigError("this is a terminal: the secret would stand on it", "Use a pipe, a file, or --show.")
    with custody.opened(args) as vault:
        content = vault.get(args.name)
    sys.stdout.buffer.write(content.reveal())
    sys.stdout.buffer.flush()
    return 0


def run_list(args: argparse.Namespace) -> int:
    from appliance.services.words import columns, json_text, moment

    with custody.opened(args) as vault:
        entries = vault.entries(args.prefix)
    if args.json:
        print(json_text({"secrets": list(entries)}))
    elif entries:
        rows = [(one.name, str(one.version), str(one.size), moment(one.at)) for one in entries]
        print("\n".join(columns([("NAME", "VERSION", "BYTES", "SINCE"), *rows])))
    else:
        print("Nothing of that name is kept." if args.prefix else "Nothing is kept yet: millwright vault put NAME")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can be asked whether it shall be forgotten", "Use --yes.")
        if input(f"Forget {args.name}, for good? Type its name: ").strip() != args.name:
            raise VaultError("that is another name", "Nothing was changed.")
    with custody.opened(args) as vault:
        vault.remove(args.name)
    print(f"{args.name} is forgotten; backups may have it still.")
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    if args.layer == "recovery":
        return recovery.renew(args)
    if bool(args.name) != (args.layer in ("namespace", "secret")) and args.layer != "binding":
        raise ConfigError(f"'{args.layer}' {'has no name' if args.name else 'wants a name'}", "See --help.")
    with custody.opened(args) as vault:
        vault.rotate(args.layer, args.name)
        status = vault.status()
    print(f"{args.layer}{f' {args.name}' if args.name else ''}: renewed; written {status.generation} times")
    return 0


def run_policy_check(args: argparse.Namespace) -> int:
    from appliance.vault import rules

    path = args.path or _policy_file(args)
    if path is None:
        print("No file of rules is named in vault.policy: only root and the vault's user may do anything.")
        return 0
    policy = rules.read(path, os.geteuid())
    print(f"{path}: in order, {len(policy.rules)} rules")
    for line in _unknown(policy.rules):
        print(f"warning: {line}")
    return 0


def run_policy_show(args: argparse.Namespace) -> int:
    from appliance.vault import rules
    from appliance.vault.policy import Policy, check_name

    path = _policy_file(args)
    policy = rules.read(path, os.geteuid()) if path else Policy(os.geteuid())
    if args.name:
        names = [check_name(args.name)]
    else:
        with custody.opened(args) as vault:
            names = [entry.name for entry in vault.entries()]
    shown = {name: {"read": policy.who("read", name), "write": policy.who("write", name)} for name in names}
    if args.json:
        print(json.dumps(shown, indent=2))
        return 0
    for name, may in shown.items():
        print(name)
        print(f"  read   {', '.join(may['read'])}")
        print(f"  write  {', '.join(may['write'])}")
    return 0


def _policy_file(args: argparse.Namespace) -> Path | None:
    config, _ = instance.configuration(args)
    return Path(config.vault.policy) if config.vault.policy else None


def _unknown(rules: Any) -> list[str]:
    """Users and groups that this machine does not know, or not yet: a rule for them waits."""
    import grp
    import pwd

    users, groups = {one.pw_name for one in pwd.getpwall()}, {one.gr_name for one in grp.getgrall()}
    found = [f"there is no user '{one.user}' now" for one in rules if one.user and one.user not in users]
    return found + [f"there is no group '{one.group}' now" for one in rules if one.group and one.group not in groups]
