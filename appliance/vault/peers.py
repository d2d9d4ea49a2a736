"""Who is at the other end of a unix socket, as the kernel says.

systemd fetches a unit's `LoadCredential=ID:/path/of/socket` over a connection of its own: it binds its end to the
abstract name `\\0<random, hexadecimal>/unit/<unit>/<ID>`, sends nothing and reads to the end (its source:
src/core/exec-credential.c). Any process may bind such a name, so it counts only where the peer is root, who could read
the secret by other means anyway.
"""

import grp
import pwd
import re
import socket
import struct

from appliance.vault.policy import Peer

_PEERGROUPS = 59  # SO_PEERGROUPS of Linux 4.13, unknown to Python
_MOST_BYTES = 1024  # Python asks for no more: 256 groups
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_UNIT = re.compile(rb"\0[0-9a-f]{1,16}/unit/([\x21-\x2e\x30-\x7e]+)/([\x21-\x2e\x30-\x7e]+)")


def find(sock: socket.socket) -> Peer:
    """OSError where the peer has gone."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    unit, credential = _of_unit(sock.getpeername())
    return Peer(uid, frozenset((gid, *_groups(sock))), pid, unit=unit, credential=credential)


def names(peer: Peer) -> tuple[str, frozenset[str]]:
    """The user's name and those of the groups. May ask a directory service: not for the event loop."""
    return _user(peer.uid), frozenset(name for gid in peer.gids if (name := _group(gid)))


def _of_unit(name: str | bytes) -> tuple[str, str]:
    # Python gives abstract names as bytes.
    found = _UNIT.fullmatch(name) if isinstance(name, bytes) else None
    return (found[1].decode("ascii"), found[2].decode("ascii")) if found else ("", "")


def _groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, _MOST_BYTES)
    except OSError:
        return ()  # an older kernel, or too many: the first group only
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
