"""tools/ca: a certificate authority for boxes.

tools/ca init DIR [--name NAME]               make one; prints the fingerprint that boxes pin
tools/ca token DIR NAME                       a token, good once, for the box of this name
tools/ca serve DIR --listen ADDRESS:PORT      answer boxes over HTTPS, until Ctrl-C
tools/ca nonce DIR                            by hand: for 'millwright identity request --nonce'
tools/ca issue DIR REQUEST --out ANSWER       by hand: for 'millwright identity install'
tools/ca list DIR | show DIR | revoke DIR NAME
"""

import argparse
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.errors import ConfigError, MillwrightError
from appliance.runtime import files
from appliance.vault.certificates import enrolment
from appliance.vault.certificates.enrolment import MAX_BYTES, Level, Request
from tools.certification.desk import Server
from tools.certification.office import CARRIED_NONCE_S, Office


def main() -> int:
    args = _parser().parse_args()
    try:
        code: int = args.run(args)
    except MillwrightError as error:
        print(f"tools/ca: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tools/ca", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, run: object) -> argparse.ArgumentParser:
        made = verbs.add_parser(name)
        made.add_argument("folder", type=Path, metavar="DIR")
        made.set_defaults(run=run)
        return made

    verb("init", run_init).add_argument("--name", default="Millwright boxes", help="of the authority, for people")
    verb("token", run_token).add_argument("name", metavar="NAME")
    serve = verb("serve", run_serve)
    serve.add_argument("--listen", type=_address, default=("127.0.0.1", 8443), metavar="ADDRESS:PORT")
    serve.add_argument("--name", action="append", default=[], help="a name or address under which boxes reach it")
    verb("nonce", run_nonce)
    issue = verb("issue", run_issue)
    issue.add_argument("request", type=Path, metavar="REQUEST")
    issue.add_argument("--out", type=Path, required=True, metavar="ANSWER")
    verb("list", run_list).add_argument("--json", action="store_true")
    verb("show", run_show)
    verb("revoke", run_revoke).add_argument("name", metavar="NAME")
    return parser


def run_init(args: argparse.Namespace) -> int:
    office = Office.found(args.folder, args.name, time.time_ns())
    print(f"The authority is in {args.folder}; who has key.pem can make any certificate of it.")
    print(f"fingerprint {office.fingerprint}")
    return 0


def run_token(args: argparse.Namespace) -> int:
    print(Office(args.folder).token(args.name, time.time_ns()))
    return 0


def run_serve(args: argparse.Namespace) -> int:
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    office = Office(args.folder)
    names = args.name or [args.listen[0], "localhost"]
    try:
        server = Server(args.listen, office, names, time.time_ns)
    except OSError as error:
        raise ConfigError(f"cannot listen at {args.listen[0]}:{args.listen[1]}: {error.strerror}", "--listen") from None
    with server:
        host, port = server.server_address[:2]
        print(f"https://{host!s}:{port} fingerprint {office.fingerprint}", flush=True)
        server.serve_forever()
    return 0


def run_nonce(args: argparse.Namespace) -> int:
    print(Office(args.folder).nonce(time.time_ns(), CARRIED_NONCE_S).hex())
    return 0


def run_issue(args: argparse.Namespace) -> int:
    office = Office(args.folder)
    try:
        with args.request.open("rb") as file:
            request = enrolment.decode(file.read(MAX_BYTES + 1), Request)
    except OSError as error:
        raise ConfigError(f"{args.request} cannot be read: {error.strerror}", "Name a request.") from None
    files.write_atomic(args.out, enrolment.encode(office.answer_by_hand(request, time.time_ns())))
    print(f"wrote {args.out}: millwright identity install {args.out.name}")
    return 0


def run_list(args: argparse.Namespace) -> int:
    entries = Office(args.folder).issued()
    if args.json:
        print(msgspec.json.encode(entries).decode())
        return 0
    for one in entries:
        until = "revoked" if one.revoked else f"until {datetime.fromtimestamp(one.until / 1e9, UTC):%Y-%m-%d}"
        print(f"{one.name:<24}{until:<20}{Level(one.level).words:<32}{one.serial}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    print(f"fingerprint {Office(args.folder).fingerprint}")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    count = Office(args.folder).revoke(args.name, time.time_ns())
    print(f"{count} certificates of {args.name} are revoked: give {args.folder / 'revoked.pem'} to the brokers.")
    return 0


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not ADDRESS:PORT")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
