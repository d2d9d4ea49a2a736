"""The seed: one TOML file that makes a box out of an image, on a stick labelled MWSEED or on the boot partition.

    host_name = "press-2"

    [[network]]
    interface = "enp1s0"
    addresses = ["192.0.2.10/24"]
    gateway = "192.0.2.1"

    [time]
    servers = ["192.0.2.1"]

    [connectors.host]

It is read strictly, applied by `millwright first-boot`, and wiped then.
"""

import ipaddress
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from appliance.config.document import Document
from appliance.config.reference import section
from appliance.errors import ConfigError

LABEL = "MWSEED"
FILE = "millwright-seed.toml"
MAX_BYTES = 256 << 10

_SECRET = re.compile(r"[a-z0-9_.-]{1,64}(/[a-z0-9_.-]{1,64}){1,3}")
_MAX_SECRET = 64 << 10
_TABLES = ("| `network`", "| `time`", "| `ssh`", "| `updates`", "| `recovery`")  # which have a part of their own
_HOST = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

Address = Annotated[str, Meta(min_length=2, max_length=64)]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?$")]
Key = Annotated[
    str,
    Meta(
        max_length=8192,
        pattern=r"^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
        r" [A-Za-z0-9+/]{40,}={0,3}( [^\r\n]{0,256})?$",
    ),
]


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """One or several network interfaces. Write one `[[network]]` for each; without any, every wired one asks DHCP."""

    interface: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9*?_.:-]{1,64}$",
            description="Its name, `enp1s0`, or a pattern of names, `en*`, or its hardware address.",
        ),
    ] = "en*"
    dhcp: Annotated[
        bool | None, Meta(description="Ask DHCP for an address. Left out: only where `addresses` is empty.")
    ] = None
    addresses: Annotated[
        list[Address],
        Meta(max_length=16, description="Fixed addresses with the length of their network: `192.0.2.7/24`."),
    ] = field(default_factory=list)
    gateway: Annotated[str, Meta(description="Address of the router; empty: none, or DHCP's.")] = ""
    dns: Annotated[list[Address], Meta(max_length=8, description="Addresses of name servers.")] = field(
        default_factory=list
    )


class Time(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the time of day comes from."""

    servers: Annotated[
        list[Host], Meta(max_length=16, description="NTP servers. Empty: those of the image; DHCP's come first.")
    ] = field(default_factory=list)


class Ssh(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may log in. Without a key there is no ssh on the box."""

    keys: Annotated[list[Key], Meta(max_length=64, description="Lines of `authorized_keys`, without options.")] = field(
        default_factory=list
    )


class Updates(Struct, frozen=True, forbid_unknown_fields=True):
    """Where models and systems come from: `sources` and `fleet` of `[update]`. With other keys of it, `system` or
    `windows`, write all of them under `[config.update]` instead."""

    sources: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=1024)]],
        Meta(max_length=16, description="Repositories: `https://...`, or a folder or pattern for sticks."),
    ] = field(default_factory=list)
    fleet: Annotated[
        str, Meta(pattern=r"^([a-z0-9][a-z0-9_-]{0,63})?$", description="The fleet that this box belongs to.")
    ] = ""


class Recovery(Struct, frozen=True, forbid_unknown_fields=True):
    """Who else can open the vault, when the box is gone."""

    recipients: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=4096)]],
        Meta(max_length=16, description="Lines as `millwright vault recipients new` prints them."),
    ] = field(default_factory=list)


class Seed(Struct, frozen=True, forbid_unknown_fields=True):
    """Every key and every table may be left out."""

    host_name: Annotated[
        str, Meta(pattern=f"{_HOST[:-1]}$|^$", description="Small letters, digits, dashes. Empty: the image's.")
    ] = ""
    later: Annotated[
        bool,
        Meta(
            description="Take another seed after the first boot, too: whoever can plug in a stick may change all of "
            "this then."
        ),
    ] = False
    install: Annotated[
        str,
        Meta(
            pattern=r"^((/dev/)?[a-z0-9]{1,32}|)$",
            description="On the boot partition of a stick: install the system of the stick on this disk, `nvme0n1`, "
            "without asking, and erase what is on it; `only`: on the one that there is. A disk with a box's data is "
            "left alone. Empty: not at all.",
        ),
    ] = ""
    network: Annotated[list[Network], Meta(max_length=16, description="Network interfaces.")] = field(
        default_factory=list
    )
    time: Time = field(default_factory=Time)
    ssh: Ssh = field(default_factory=Ssh)
    updates: Updates = field(default_factory=Updates)
    recovery: Recovery = field(default_factory=Recovery)
    secrets: Annotated[
        dict[str, str],
        Meta(max_length=256, description='Secrets for the vault, by their names there: `"mqtt/plant" = "..."`.'),
    ] = field(default_factory=dict)
    connectors: Annotated[
        dict[str, Any], Meta(max_length=64, description="`[connectors.NAME]`, as in the configuration.")
    ] = field(default_factory=dict)
    config: Annotated[
        dict[str, Any], Meta(max_length=32, description="`[config.SECTION]`: any other section of the configuration.")
    ] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Seed(...)"  # it holds secrets


def read(path: Path) -> tuple[Seed, Document]:
    """ConfigError names file, line and key."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "Name a seed that can be read with --seed.") from None
    return parse(str(path), raw)


def parse(source: str, raw: bytes) -> tuple[Seed, Document]:
    """ConfigError, as above. No message holds a secret."""
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{source} has more than {MAX_BYTES} bytes", "A seed is a small text file.")
    try:
        document = Document(source, raw.decode("utf-8-sig"))  # some editors put a mark in front
    except UnicodeDecodeError:
        raise ConfigError(f"{source} is not text in UTF-8", "Save it as UTF-8; TOML is nothing else.") from None
    except ConfigError as error:
        raise ConfigError(error.message, "Mend the TOML there, and start the box again.") from None
    try:
        seed = document.into(Seed, document.tables)
    except ConfigError as error:
        raise ConfigError(error.message, _remedy(error.remedy)) from None
    for problem in problems(seed, document):
        raise problem
    return seed, document


def _remedy(found: str) -> str:
    return "'millwright first-boot --reference' lists every key." if "config reference" in found else found


def problems(seed: Seed, document: Document) -> Iterator[ConfigError]:
    """What is wrong beyond the types of values."""
    for index, one in enumerate(seed.network):
        yield from _network(one, document, ("network", str(index)))
    for name, value in seed.secrets.items():
        if not _SECRET.fullmatch(name):
            remedy = 'Write "namespace/name" = "...", small letters, digits, dot, dash and underscore.'
            yield document.error(("secrets", name), "this cannot name a secret", remedy)
        elif not value or len(value.encode()) > _MAX_SECRET:
            yield document.error(("secrets", name), "a secret has 1 to 65536 bytes", "Leave it out, or shorten it.")
    for key in [one for one in ("base", "paths") if one in seed.config]:
        yield document.error(("config", key), "the image says where things are kept", "Leave it out.")
    if "connectors" in seed.config:
        yield document.error(("config", "connectors"), "this is said twice", "Write it under [connectors] alone.")
    yield from _updates(seed, document)


def _updates(seed: Seed, document: Document) -> Iterator[ConfigError]:
    more = seed.config.get("update")
    if not isinstance(more, dict):  # which its schema says, if it is there
        more = {}
    if more and seed.updates != Updates():
        remedy = "Write all of it under [config.update], and leave out [updates]."
        yield document.error(("config", "update"), "this is said twice", remedy)
    places: tuple[tuple[tuple[str, ...], object, object], ...] = (
        (("updates", "fleet"), seed.updates.sources, seed.updates.fleet),
        (("config", "update", "fleet"), more.get("sources"), more.get("fleet")),
    )
    for place, sources, fleet in places:
        if sources and not fleet:
            yield document.error(place, "there are sources and no fleet", 'Add fleet = "...".')


def _network(one: Network, document: Document, path: tuple[str, ...]) -> Iterator[ConfigError]:
    for address in one.addresses:
        if "/" not in address or not _is(ipaddress.ip_interface, address):
            problem = f"'{address}' is no address with the length of its network"
            yield document.error((*path, "addresses"), problem, "Write it as in 192.0.2.7/24.")
    for key, given in (("gateway", [one.gateway] if one.gateway else []), ("dns", one.dns)):
        for address in given:
            if not _is(ipaddress.ip_address, address):
                yield document.error((*path, key), f"'{address}' is no address", "Write it as in 192.0.2.1.")
    if one.dhcp is False and not one.addresses:
        yield document.error(path, "it would have no address", 'Set dhcp = true, or addresses = ["192.0.2.7/24"].')
    if one.gateway and not one.addresses:
        yield document.error((*path, "gateway"), "a gateway goes with fixed addresses", "DHCP gives its own.")


def _is(kind: Any, text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def reference() -> str:
    """Every key, as Markdown."""
    own = [line for line in section("", Seed)[1:] if not line.startswith(_TABLES)]
    parts = ["# The seed", "", *cleandoc(__doc__ or "").splitlines(), "", "## Keys", *own]
    parts += section("[network]", Network) + section("time", Time) + section("ssh", Ssh)
    parts += section("updates", Updates) + section("recovery", Recovery)
    return "\n".join(parts).rstrip() + "\n"
