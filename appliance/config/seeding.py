"""What a seed makes of a box: files, tables of the configuration, secrets. Pure: `millwright first-boot` writes it."""

import re
from dataclasses import dataclass, field
from typing import Any

from appliance.config.places import INSTALLED
from appliance.config.seed import Network, Seed

HOST_NAME = "/etc/hostname"
NETWORKS = "/etc/systemd/network"
TIMESYNCD = "/etc/systemd/timesyncd.conf.d/50-millwright.conf"
SSH_KEYS = "/etc/millwright/ssh/authorized_keys"
CONFIG = str(INSTALLED)

_HARDWARE = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_NETWORK_FILE = re.compile(r"[0-9]{2}-millwright-[0-9]{1,2}\.network")
_HEAD = "# Written by millwright first-boot from the seed.\n"


@dataclass(frozen=True)
class File:
    path: str  # absolute, on the box
    content: str
    mode: int = 0o644


@dataclass(frozen=True)
class Outcome:
    """`tables` go into the configuration, over what stands there; `secrets` into the vault, `recipients` beside its own
    recovery key."""

    files: tuple[File, ...]
    tables: dict[str, Any]
    secrets: dict[str, str] = field(repr=False)
    recipients: tuple[str, ...] = ()
    later: bool = False


def outcome(seed: Seed) -> Outcome:
    """The same seed gives the same outcome, byte for byte."""
    files = [*_host(seed), *_networks(seed), *_time(seed), *_ssh(seed)]
    return Outcome(tuple(files), _tables(seed), dict(seed.secrets), tuple(seed.recovery.recipients), seed.later)


def is_networks(name: str) -> bool:
    """Whether a file's name is one that a seed gave to a network: those that this seed does not make are removed."""
    return bool(_NETWORK_FILE.fullmatch(name))


def _host(seed: Seed) -> list[File]:
    return [File(HOST_NAME, f"{seed.host_name}\n")] if seed.host_name else []


def _networks(seed: Seed) -> list[File]:
    return [
        File(f"{NETWORKS}/{20 + index}-millwright-{index}.network", _network(one))
        for index, one in enumerate(seed.network)
    ]


def _network(one: Network) -> str:
    """A file of systemd.network(5)."""
    dhcp = not one.addresses if one.dhcp is None else one.dhcp
    match = "PermanentMACAddress" if _HARDWARE.fullmatch(one.interface) else "Name"
    lines = ["[Match]", f"{match}={one.interface}", "", "[Network]", f"DHCP={'yes' if dhcp else 'no'}"]
    lines += [f"Address={address}" for address in one.addresses]
    lines += [f"Gateway={one.gateway}"] if one.gateway else []
    lines += [f"DNS={address}" for address in one.dns]
    lines += ["", "[DHCPv4]", "UseHostname=no"] if dhcp else []
    return _HEAD + "\n".join(lines) + "\n"


def _time(seed: Seed) -> list[File]:
    if not seed.time.servers:
        return []
    return [File(TIMESYNCD, f"{_HEAD}[Time]\nNTP={' '.join(seed.time.servers)}\n")]


def _ssh(seed: Seed) -> list[File]:
    return [File(SSH_KEYS, "".join(f"{key}\n" for key in seed.ssh.keys))] if seed.ssh.keys else []


def _tables(seed: Seed) -> dict[str, Any]:
    tables = dict(seed.config)
    update: dict[str, Any] = {}
    if seed.updates.sources:
        update["sources"] = list(seed.updates.sources)
    if seed.updates.fleet:
        update["fleet"] = seed.updates.fleet
    if update:
        tables["update"] = update
    if seed.connectors:
        tables["connectors"] = seed.connectors
    return tables
