"""`millwright identity`: this box towards an outside authority, whose certificates brokers elsewhere believe.

millwright identity enrol https://ca.example:8443 --fingerprint SHA256 --token TOKEN
millwright identity request FILE --ca ca.pem --nonce NONCE --token TOKEN    the same by hand, on a stick
millwright identity install FILE                                            and the answer to it
millwright identity status

Then `[bus] identity = {vault = "identity/device"}` shows it to an mqtts broker. The key stays in the vault, or in the
TPM; the running vault renews the certificate after two thirds of its life, once it was enrolled over the network.
`tools/ca` is an authority for small sites. Devices of this box need none of this: see `millwright devices`.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import custody, instance
from appliance.errors import ConfigError, VaultError

if TYPE_CHECKING:
    from appliance.vault.certificates.enrolment import Level
    from appliance.vault.certificates.identity import Account, Identities, Identity

HEX_BYTES = 32  # of a fingerprint, a nonce, a token
TOKEN_VARIABLE = "MILLWRIGHT_TOKEN"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "identity",
        help="this box's certificate of an outside authority",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    enrol = verbs.add_parser("enrol", help="ask an authority for a certificate, over the network")
    enrol.add_argument("url", metavar="URL", help="https://host:port")
    enrol.add_argument("--fingerprint", required=True, type=_hex, metavar="SHA256", help="of the authority's own")
    _asking(enrol)
    enrol.set_defaults(run=run_enrol)
    request = verbs.add_parser("request", help="write a request that is carried by hand")
    request.add_argument("file", type=Path, metavar="FILE")
    request.add_argument("--ca", type=Path, metavar="FILE", help="the authority's certificate, the first time")
    request.add_argument("--nonce", required=True, type=_hex, help="that the authority gave out for it")
    _asking(request)
    request.set_defaults(run=run_request)
    install = verbs.add_parser("install", help="take the answer to a request that was carried by hand")
    install.add_argument("file", type=Path, metavar="FILE")
    install.set_defaults(run=run_install)
    renew = verbs.add_parser("renew", help="get a new certificate now, with a new key")
    renew.set_defaults(run=run_renew)
    status = verbs.add_parser("status", help="who this box is, to whom, until when")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=run_status)


def _asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="of this box, to the authority (default: its host name)")
    parser.add_argument(
        "--token",
        type=_hex,
        default=b"",
        help=f"that admits it once; better in ${TOKEN_VARIABLE}, which other users of the machine cannot read",
    )
    parser.add_argument(
        "--key",
        choices=("vault", "tpm"),
        default="vault",
        help="where it is kept: in the vault (default), or in the TPM, which no TLS of this release can use by itself",
    )


def run_enrol(args: argparse.Namespace) -> int:
    from appliance import assembly
    from appliance.services import enrolling

    fingerprint = args.fingerprint.hex()
    with _identities(args) as identities:
        authority = instance.play(enrolling.first_contact(args.url, fingerprint))
        before = identities.account()
        identities.open_account(_account(args, args.url, authority))
        try:
            found = instance.play(enrolling.enrol(identities, assembly.believed_time, _token(args)))
        except BaseException:
            if before is not None and identities.current() is not None:
                identities.open_account(before)  # whose certificate still stands, and is to be renewed
            raise
    print("\n".join(_told(found)))
    return 0


def run_request(args: argparse.Namespace) -> int:
    from appliance.runtime import files
    from appliance.vault.certificates import enrolment

    with _identities(args) as identities:
        before = identities.account()
        if args.ca is None and before is None:
            raise ConfigError("no authority is known to this box yet", "Name its certificate: --ca ca.pem.")
        authority = _content(args.ca) if args.ca else before.authority if before else b""
        identities.open_account(_account(args, "", authority))
        request = identities.ask(args.nonce, _token(args))
    files.write_atomic(args.file, enrolment.encode(request))
    print(f"wrote {args.file}: on the authority's machine, tools/ca issue DIR {args.file.name} --out ANSWER")
    return 0


def run_install(args: argparse.Namespace) -> int:
    from appliance.vault.certificates import enrolment

    answer = enrolment.decode_answer(_content(args.file))
    if isinstance(answer, enrolment.Challenge):
        raise VaultError(f"{args.file} is a part of a conversation over the network", "Name what tools/ca issue wrote.")
    with _identities(args) as identities:
        found = identities.install(answer)
    print("\n".join(_told(found)))
    return 0


def run_renew(args: argparse.Namespace) -> int:
    from appliance import assembly
    from appliance.services import enrolling

    with _identities(args) as identities:
        found = instance.play(enrolling.enrol(identities, assembly.believed_time))
    print("\n".join(_told(found)))
    return 0


def run_status(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text

    with _identities(args) as identities:
        account, found, is_pending = identities.account(), identities.current(), identities.is_pending()
        is_due = identities.is_due()
    if args.json:
        print(json_text(_plain(account, found, is_pending, is_due)))
        return 0
    print("\n".join(_told(found) if found else ["This box has no certificate of an outside authority."]))
    if found and account:
        print(f"authority {account.url or 'by hand'}{'; a new certificate is due' if is_due else ''}")
    if is_pending:
        print("pending   a certificate was asked for and is not here yet")
    return 0


def _plain(account: "Account | None", found: "Identity | None", is_pending: bool, is_due: bool) -> dict[str, Any]:
    if found is None:
        return {"name": None, "pending": is_pending, "authority": account.url if account else None}
    return {
        "name": found.name,
        "level": found.level,
        "key_in_tpm": found.in_tpm,
        "until": _date(found.certificate.not_valid_after_utc),
        "due": is_due,
        "pending": is_pending,
        "authority": account.url if account else None,
    }


def _told(found: "Identity") -> list[str]:
    lines = [
        f"name      {found.name}",
        f"known as  {found.level}, by {found.certificate.issuer.rfc4514_string()}",
        f"until     {_date(found.certificate.not_valid_after_utc)}",
        'use       [bus] identity = {vault = "identity/device"}',
    ]
    if found.in_tpm:
        lines.append("note      the key is in the TPM: bus.identity wants an OpenSSL that can use it there")
    return lines


@contextmanager
def _identities(args: argparse.Namespace) -> "Iterator[Identities]":
    from appliance import assembly

    config, _ = instance.configuration(args)
    with custody.opened(args) as vault:
        yield assembly.identities(config, vault)


def _account(args: argparse.Namespace, url: str, authority: bytes) -> "Account":
    import socket

    from cryptography import x509

    from appliance.vault.certificates.identity import Account

    try:
        x509.load_pem_x509_certificate(authority)
    except ValueError:
        raise ConfigError("that is no certificate of an authority", "Name its ca.pem.") from None
    return Account(args.name or socket.gethostname().split(".")[0].lower(), url, authority, _level(args.key))


def _level(key: str) -> "Level":
    """What can be shown here: a key in the TPM, a box that has one, or neither."""
    from appliance.vault.certificates.enrolment import Level
    from hardware import tpm

    found = tpm.find()
    if key == "tpm" and not found.usable:
        raise VaultError(f"the TPM cannot be used: {found.reason}", found.remedy or "--key vault does without one.")
    if not found.usable:
        print(
            f"No TPM: the key is kept in the vault, and the certificate will say so ({found.reason}).", file=sys.stderr
        )
        return Level.SOFTWARE
    return Level.BOX if key == "vault" else Level.KEY


def _token(args: argparse.Namespace) -> bytes:
    given: bytes = args.token
    from_environment = os.environ.get(TOKEN_VARIABLE, "")
    if given or not from_environment:
        return given
    try:
        return _hex(from_environment)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"${TOKEN_VARIABLE}: {error}", "Write it as tools/ca token printed it.") from None


def _content(path: Path) -> bytes:
    from appliance.vault.certificates.enrolment import MAX_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "Name another file.") from None


def _hex(text: str) -> bytes:
    try:
        content = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        content = b""
    if len(content) != HEX_BYTES:
        raise argparse.ArgumentTypeError(f"that is not {HEX_BYTES} bytes in hex")
    return content


def _date(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
