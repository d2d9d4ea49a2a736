"""Makes up personal data, as people write it, between sentences and machine data that hold none."""

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import NamedTuple


class Sample(NamedTuple):
    text: str
    kind: str  # of what is in it; empty: nothing
    start: int  # of its characters
    end: int


def people(seed: int, count: int) -> Iterator[Sample]:
    """Texts with one piece of personal data each."""
    dice = random.Random(seed)
    for _ in range(count):
        kind = dice.choice(list(_MAKERS))
        before, after = dice.choice(_AROUND)
        written = _MAKERS[kind](dice)
        if kind == "passport" and written[0] not in "EG":  # nothing but the word before it tells what it is
            before = dice.choice(("Passport No. ", "护照号码：", "Reisepass Nr. ", "passport: "))
        yield Sample(before + written + after, kind, len(before), len(before) + len(written))


def machines(seed: int, count: int) -> Iterator[Sample]:
    """Texts of machines: times, measurements, hashes, addresses, versions, orders."""
    dice = random.Random(seed)
    for _ in range(count):
        yield Sample(dice.choice(_MACHINE)(dice), "", 0, 0)


def _luhn(body: str) -> str:
    doubled = [int(digit) * (2 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(body))]
    return body + str(-sum(value // 10 + value % 10 for value in doubled) % 10)


def _digits(dice: random.Random, count: int) -> str:
    return "".join(dice.choice("0123456789") for _ in range(count))


def _written(dice: random.Random, number: str, groups: tuple[int, ...]) -> str:
    """As one row, in groups, in full width, or with an invisible character in it."""
    way = dice.randrange(6)
    if way in (0, 1):
        return number
    if way == 2:
        return "".join(chr(ord(c) + 0xFEE0) for c in number)
    if way == 3:
        cut = dice.randrange(1, len(number))
        return number[:cut] + dice.choice("\u200b\u2060\ufeff") + number[cut:]
    parts, at = [], 0
    for size in groups:
        parts.append(number[at : at + size])
        at += size
    return dice.choice(" -\u2011").join(part for part in [*parts, number[at:]] if part)


def _resident_id(dice: random.Random) -> str:
    province = dice.choice(("110101", "310115", "440305", "510104", "320583", "650102", "810000", "230103"))
    born = date(1930, 1, 1) + timedelta(days=dice.randrange(33_000))
    body = f"{province}{born:%Y%m%d}{_digits(dice, 3)}"
    # The place values of ISO 7064 are powers of two modulo 11.
    rest = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(body)) % 11
    check = "X" if (12 - rest) % 11 == 10 else str((12 - rest) % 11)
    return _written(dice, body + dice.choice((check, check.lower())), (6, 8, 4))


def _card(dice: random.Random) -> str:
    prefix, length = dice.choice(
        (
            ("62", 16),
            ("62", 19),
            ("4", 16),
            ("53", 16),
            ("2345", 16),
            ("37", 15),
            ("3530", 16),
            ("6011", 16),
            ("955880", 19),
        )
    )
    return _written(dice, _luhn(prefix + _digits(dice, length - 1 - len(prefix))), (4, 4, 4, 4))


def _phone(dice: random.Random) -> str:
    way = dice.randrange(7)
    if way <= 2:
        mobile = _written(dice, "1" + dice.choice("3456789") + _digits(dice, 9), (3, 4, 4))
        return dice.choice(("", "", "+86 ", "+86", "0086", "86-")) + mobile
    if way == 3:
        return dice.choice(("010-", "021-", "0755-", "(0571) ", "0532 ")) + dice.choice("2345678") + _digits(dice, 7)
    if way == 4:
        country = dice.choice(("49", "44", "33", "81", "7", "55"))
        return f"+{country} {_digits(dice, 3)} {_digits(dice, 3)}-{_digits(dice, 4)}"
    if way == 5:
        return f"({dice.randrange(200, 990)}) {dice.randrange(200, 990)}-{_digits(dice, 4)}"
    return f"400-{_digits(dice, 3)}-{_digits(dice, 4)}"


def _e_mail(dice: random.Random) -> str:
    name = dice.choice(("li.wei", "j-müller", "anna+sensor", "o'neill", "王伟", "x_1", "ops.team"))
    return (
        name
        + _digits(dice, dice.randrange(4))
        + dice.choice(("@", "@", "＠"))
        + dice.choice(("example.com", "werk-3.example.de", "mail.example.cn", "例子.中国", "sub.dom.example.co.uk"))
    )


def _passport(dice: random.Random) -> str:
    if dice.randrange(4) == 0:
        return _machine_readable(dice)
    if dice.randrange(2):
        return dice.choice(("EA", "EK", "K", "AB", "C", "")) + _digits(dice, 7)
    return dice.choice("EG") + _digits(dice, 8)


def _machine_readable(dice: random.Random) -> str:
    def check(field: str) -> str:
        values = [0 if c == "<" else int(c, 36) for c in field]
        return str(sum(value * (7, 3, 1)[place % 3] for place, value in enumerate(values)) % 10)

    number = ("E" + _digits(dice, 8)).ljust(9, "<")
    born, until = (
        f"{dice.randrange(10, 99)}{dice.randrange(1, 13):02}{dice.randrange(1, 29):02}",
        f"3{_digits(dice, 1)}1105",
    )
    line = number + check(number) + "CHN" + born + check(born) + dice.choice("MF<") + until + check(until) + "<" * 14
    return line + "<" + check(number + check(number) + born + check(born) + until + check(until) + "<" * 15)


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "resident-id": _resident_id,
    "bank-card": _card,
    "phone": _phone,
    "e-mail": _e_mail,
    "passport": _passport,
}

_AROUND = (
    ("联系人 李伟 ", "，请尽快处理"),
    ("身份证号码：", "。"),
    ('{"operator": "', '", "shift": 3}'),
    ("Call ", " if pump 4 stops."),
    ("note=", ";line=2"),
    ("Kunde (", ") meldet Ausfall um 14:05, 61.2 °C"),
    ("", ""),
    ("电话", "（夜班）"),
)


def _time(dice: random.Random) -> str:
    day, minute = f"2026-{dice.randrange(1, 13):02}-{dice.randrange(1, 29):02}", dice.randrange(60)
    return f"{day}T12:{minute:02}:07.{_digits(dice, 9)}Z pump/{dice.randrange(99)} ok"


def _reading(dice: random.Random) -> str:
    at = 1_700_000_000_000_000_000 + dice.randrange(10**17)
    return f'{{"at": {at}, "temperature": {dice.uniform(-40, 900):.6f}}}'


def _order(dice: random.Random) -> str:
    version = ".".join(str(dice.randrange(40)) for _ in range(3))
    return f"order {_digits(dice, 10)} lot {_digits(dice, 8)} v{version}"


_MACHINE: tuple[Callable[[random.Random], str], ...] = (
    _time,
    _reading,
    _order,
    lambda dice: f"sha256:{dice.getrandbits(256):064x}",
    lambda dice: f"10.{dice.randrange(256)}.{dice.randrange(256)}.7:1883 {dice.getrandbits(48):012x}",
    lambda dice: " ".join(f"{dice.gauss(0, 1):.12f}" for _ in range(8)),
    lambda dice: f"uptime {_digits(dice, 6)} s, counter={_digits(dice, 9)}, serial SN{_digits(dice, 9)}",
    lambda dice: f"{dice.getrandbits(32):08x}-4a1b-9c3d-8e2f-{dice.getrandbits(48):012x}",
    lambda dice: f"ms={1_700_000_000_000 + dice.randrange(10**11)} us={1_700_000_000_000_000 + dice.randrange(10**14)}",
    lambda dice: f"轴承温度 {dice.uniform(20, 90):.2f} 摄氏度, 第{dice.randrange(10**6)}批",
)
