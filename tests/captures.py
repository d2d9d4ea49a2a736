"""Packet captures (classic pcap, Ethernet, IPv4, TCP), as much of them as the tests of protocols need."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ETHERNET, _TCP = 14, 6


class Segment(NamedTuple):
    """TCP payload of one packet; the time as tcpdump prints it, in seconds."""

    at: float
    source: int
    target: int
    payload: bytes


def segments(path: Path) -> Iterator[Segment]:
    raw = path.read_bytes()
    order = "<" if raw[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    fraction = 1e-9 if raw[:4] in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d") else 1e-6
    at = 24
    while at + 16 <= len(raw):
        seconds, parts, size, _ = struct.unpack_from(f"{order}IIII", raw, at)
        packet = raw[at + 16 : at + 16 + size]
        at += 16 + size
        if packet[12:14] != b"\x08\x00" or packet[_ETHERNET + 9] != _TCP:
            continue
        ip = packet[_ETHERNET:]
        tcp = ip[(ip[0] & 15) * 4 : struct.unpack_from(">H", ip, 2)[0]]
        source, target = struct.unpack_from(">HH", tcp)
        payload = tcp[(tcp[12] >> 4) * 4 :]
        if payload:
            yield Segment(seconds + parts * fraction, source, target, payload)


class Answer(NamedTuple):
    """A Modbus/TCP response: unit and PDU."""

    at: float
    unit: int
    pdu: bytes


def modbus_answers(path: Path) -> Iterator[Answer]:
    for segment in segments(path):
        data = segment.payload
        while segment.source == 502 and len(data) >= 8:
            _, protocol, length, unit = struct.unpack_from(">HHHB", data)
            if protocol or len(data) < 6 + length:
                break
            yield Answer(segment.at, unit, data[7 : 6 + length])
            data = data[6 + length :]
