"""Devices that reach this box over TLS: certify, revoke and list them. For `millwright devices`.

The listener is opened by `broker.tls_port`; certificates come from the box's own authority, whose key is in its vault.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import instance
from appliance.errors import BusError, ConfigError, EventError, StoreError

if TYPE_CHECKING:
    from appliance.config.schema import Config
    from appliance.services.admission import Admission, Given
    from appliance.vault.certificates.registry import Device

MAX_REQUEST_BYTES = 64 << 10


def register(verbs: Any) -> None:
    certify = verbs.add_parser("certify", help="admit a device over TLS, or renew its certificate and rights")
    certify.add_argument("name", metavar="NAME", help="small letters, digits, '.', '_', '-'")
    certify.add_argument("--asset", action="append", default=[], help="it sends readings of this asset and all below")
    certify.add_argument("--publish", action="append", default=[], metavar="FILTER", help="and may publish here")
    certify.add_argument("--subscribe", action="append", default=[], metavar="FILTER", help="and may listen here")
    certify.add_argument("--request", type=Path, metavar="FILE", help="a certificate request (PEM) with its own key")
    certify.add_argument("--days", type=_days, default=397, help="how long the certificate holds (%(default)s)")
    certify.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write what it is given")
    certify.set_defaults(run=run_certify)
    revoke = verbs.add_parser("revoke", help="a certified device is let in no longer")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(run=run_revoke)
    listing = verbs.add_parser("certified", help="the devices that were certified, and what each may do")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_certified)


def run_certify(args: argparse.Namespace) -> int:
    from appliance.services.admission import rights

    config, _ = instance.configuration(args)
    try:
        device = rights(args.name, args.asset, _filters(args.publish), _filters(args.subscribe))
    except EventError as error:
        raise ConfigError(f"--asset: {error}", "Write it as in line1/pump.") from error
    if not (device.publish or device.subscribe):
        raise ConfigError(f"'{args.name}' would be allowed nothing", "Name what it does with --asset or --subscribe.")
    request = _request(args.request)
    _check_free(args.out, ("certificate.pem", "ca.pem", *(() if request else ("key.pem",))))
    given = _admission(config).certify(device, request, args.days)
    for path in _hand_out(given, args.out):
        print(f"wrote {path}")
    if not config.broker.tls_port:
        print("The box does not listen for it yet: set broker.tls_port, 8883 is usual.")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    config, _ = instance.configuration(args)
    _admission(config).revoke(args.name)
    print(f"{args.name} may do nothing any more; a running broker follows within seconds.")
    return 0


def run_certified(args: argparse.Namespace) -> int:
    from appliance.services.words import json_text

    config, _ = instance.configuration(args)
    devices = _admission(config).devices()
    if args.json:
        print(json_text({"devices": [_plain(device) for device in devices]}))
        return 0
    for device in devices:
        state = "revoked" if device.revoked else f"until {_date(device.until)}"
        print(f"{device.name:<24}{state:<20}{', '.join((*device.publish, *device.subscribe))}".rstrip())
    if not devices:
        print("No device was certified yet: millwright devices certify NAME --asset ASSET --out FOLDER")
    return 0


def _admission(config: "Config") -> "Admission":
    from appliance import assembly

    return assembly.admission(config)


def _filters(wanted: list[str]) -> list[str]:
    """ConfigError for what would stop the broker's door from being opened to anybody."""
    from appliance.bus import acl
    from appliance.bus.filters import check

    for one in wanted:
        try:
            check([acl.safe(one)])
        except BusError as error:
            raise ConfigError(
                f"{one!r} is no topic filter", "Write it as in mw/v1/alarm/# or mw/v1/+/line1/pump."
            ) from error
    return wanted


def _request(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(MAX_REQUEST_BYTES)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", "Name a certificate request.") from error


def _check_free(folder: Path, names: Sequence[str]) -> None:
    """Before anybody is certified. StoreError where the folder could not be used."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    taken = [name for name in names if there == folder.absolute() and (folder / name).exists()]
    if taken or not there.is_dir() or not os.access(there, os.W_OK):
        reason = f"{taken[0]} is there already" if taken else f"nothing may be written into {there}"
        raise StoreError(f"{folder} cannot be used: {reason}", "Name a new folder with --out.")


def _hand_out(given: "Given", folder: Path) -> list[Path]:
    """Keys are closed to others. StoreError where a file is there already: it may be the only copy of a key."""
    contents = {"certificate.pem": given.certificate, "ca.pem": given.authority}
    if given.key:
        contents["key.pem"] = given.key.reveal()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in contents.items():
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        raise StoreError(f"{folder} cannot be used: {error.strerror}", "Name a new folder with --out.") from error
    return [folder / name for name in contents]


def _plain(device: "Device") -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(device)
    return plain


def _days(text: str) -> int:
    days = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not 1 <= days <= 36_500:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days from 1 to 36500")
    return days


def _date(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1e9, UTC):%Y-%m-%d}"
