"""Of `millwright vault`: the journal of what was done and refused."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import custody, instance
from appliance.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SHOWN = 50
ALTERED = 1  # exit code of `verify`


def register(verbs: Any) -> None:
    parser = verbs.add_parser("audit", help="what was done and refused")
    what = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    verify = what.add_parser("verify", help="whether the journal is whole, and as it was written")
    verify.add_argument("--key", metavar="HEX", help="the public key it is signed with (default: asked of the vault)")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=run_verify)
    export = what.add_parser("export", help="all of it, JSON lines, for a SIEM")
    export.set_defaults(run=run_export)
    show = what.add_parser("show", help="the newest entries")
    show.add_argument("--last", type=int, default=SHOWN, metavar="N", help=f"how many (default: {SHOWN})")
    show.set_defaults(run=run_show)


def run_verify(args: argparse.Namespace) -> int:
    from appliance import binding
    from appliance.services.words import json_text
    from appliance.vault.audit import journal

    config, document = instance.configuration(args)
    box = binding.Box(config, document)
    key = _given(args.key) if args.key else _asked(args)
    report = journal.verify(_folder(args), key, box.audit_counter())
    if args.json:
        print(json_text(report))
    elif report.flaw:
        print(f"entry {report.flaw.seq} is not as it was written: {report.flaw.what}")
    else:
        anchored = (
            "its end compared with a counter" if report.anchored else "no counter tells whether its end was cut off"
        )
        print(f"whole: {report.entries} entries, signed through {report.signed_through}; {anchored}")
    return ALTERED if report.flaw else 0


def run_export(args: argparse.Namespace) -> int:
    from appliance.vault.audit import journal

    for line in journal.read(_folder(args)):
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
    return 0


def run_show(args: argparse.Namespace) -> int:
    from collections import deque

    from appliance.services.words import columns, moment, printable
    from appliance.vault.audit import chain, journal

    rows: list[tuple[str, ...]] = [("AT", "BY", "WHAT", "OF", "OUTCOME", "")]
    for line in deque(journal.read(_folder(args)), maxlen=max(1, args.last)):
        try:
            entry = chain.parse(line)
        except ValueError:
            rows.append(("?", "", "no entry", "", "", "see `millwright vault audit verify`"))
            continue
        words = [printable(one) for one in (entry.actor, entry.action, entry.subject, entry.outcome)]
        detail = ", ".join(f"{key} {value}" for key, value in entry.detail.items() if value and key != "signature")
        rows.append((moment(entry.at), *words, printable(detail)))
    print("\n".join(columns(rows)) if rows[1:] else "Nothing was ever noted.")
    return 0


def _folder(args: argparse.Namespace) -> Path:
    from appliance.vault import opening
    from appliance.vault.audit import journal

    config, _ = instance.configuration(args)
    return config.paths.state / opening.FOLDER / journal.FOLDER


def _given(text: str) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except ValueError:
        raise ConfigError(
            "that is no public key", "Give 64 hex digits, as the first entry of the journal has them."
        ) from None


def _asked(args: argparse.Namespace) -> "Ed25519PublicKey":
    from appliance.vault import opening

    with custody.opened(args) as vault:
        return opening.audit_key(vault).public_key()
