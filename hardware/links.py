"""Which links to a network this box has, and whether those of another moment are there again. Judging is pure.

A link is known again by the address burnt into it, as names change with drivers and kernels; one that has none (some
boards make theirs up) is left out. Nothing here needs netlink or powers. `root` is another file tree in tests.
"""

import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hardware.identity import burnt_in

MAX_LINKS = 64
_SIOCGIFADDR = 0x8915
_NOT_USABLE = 0x08 | 0x40  # flags of an IPv6 address: another has it too, or that is not known yet

Ask = Callable[[str], str]  # an interface's name -> one of its addresses, or ""


@dataclass(frozen=True)
class Link:
    address: str  # burnt in
    name: str  # for people
    carrier: bool | None  # None: it is not set up, and cannot tell
    leads_out: bool  # it has an address that is for more than the link alone


@dataclass(frozen=True)
class Verdict:
    link: Link
    ok: bool
    detail: str
    remedy: str = ""


# ---- judging --------------------------------------------------------------------------------------------------------


def compare(before: Iterable[Link], now: Iterable[Link], settled: bool) -> list[Verdict]:
    """What has become of the links that there were. `settled`: what comes up after a start has had its time."""
    there = tuple(now)
    return [_verdict(one, [each for each in there if each.address == one.address], settled) for one in before]


def _verdict(one: Link, there: list[Link], settled: bool) -> Verdict:
    """Several interfaces may have one address, as a switch's ports do: any of them may be the one that it was."""
    if not there:
        remedy = "Is it plugged in? If it is, this kernel has no driver for it: journalctl -b -k."
        return Verdict(one, False, f"it was there before the update, and is gone ({one.address})", remedy)
    if not (one.carrier and one.leads_out):
        return Verdict(one, True, "there; it led nowhere before the update")
    if any(each.leads_out for each in there):
        return Verdict(one, True, "there, with an address")
    if any(each.carrier is False for each in there):
        detail = "there, without a carrier, which it had before the update"
        return Verdict(one, settled, detail, "Is its cable in?")
    if any(each.carrier for each in there):
        detail = "there, with a carrier, but without an address, which it had before the update"
        return Verdict(one, False, detail, "Does the network's DHCP server answer? journalctl -b -u systemd-networkd")
    detail = "there, but nothing has set it up, and it had an address before the update"
    return Verdict(one, False, detail, "journalctl -b -u systemd-networkd")


# ---- reading --------------------------------------------------------------------------------------------------------


def find(root: Path = Path("/"), permanent: Ask | None = None, ipv4: Ask | None = None) -> tuple[Link, ...]:
    """Those with hardware of their own: no bridges, tunnels or virtual functions. Nothing is raised."""
    here = root == Path("/")
    permanent, ipv4 = permanent or (burnt_in if here else _nothing), ipv4 or (ipv4_of if here else _nothing)
    outward = ipv6_outward(_text(root / "proc/net/if_inet6"))
    found = []
    for port in sorted((root / "sys/class/net").glob("*"))[:MAX_LINKS]:
        if not (port / "device").exists() or (port / "device/physfn").exists():
            continue
        own = _text(port / "address") if _text(port / "addr_assign_type") == "0" else ""  # 0: it was made with it
        address = (permanent(port.name) or own).lower()
        if address:
            leads_out = port.name in outward or is_outward(ipv4(port.name))
            found.append(Link(address, port.name, _carrier(port), leads_out))
    return tuple(found)


def _carrier(port: Path) -> bool | None:
    """The kernel refuses the question while the interface is down."""
    return {"0": False, "1": True}.get(_text(port / "carrier"))


def is_outward(address: str) -> bool:
    """Whether this IPv4 address is for more than the link alone."""
    try:
        found = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (found.is_link_local or found.is_loopback or found.is_unspecified or found.is_multicast)


def ipv6_outward(text: str) -> frozenset[str]:
    """Of /proc/net/if_inet6: the interfaces with a global address. Lines: address index prefix scope flags name."""
    lines = re.findall(r"^[0-9a-f]{32} +[0-9a-f]+ +[0-9a-f]+ +00 +([0-9a-f]+) +(\S+)$", text, re.MULTILINE)
    return frozenset(name for flags, name in lines if not int(flags, 16) & _NOT_USABLE)


def ipv4_of(interface: str) -> str:
    """Its first IPv4 address; the kernel puts those for more than the link first."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("16s24x", interface.encode()[:15]))
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])


def _nothing(interface: str) -> str:
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
