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


def odd(seed: int, count: int) -> Iterator[Sample]:
    """As `people`, in spellings that are rare and still a person's: brackets, slashes, blanks between all digits, half
    of it in full width, the dots of an input method."""
    dice = random.Random(seed)
    for _ in range(count):
        kind, written = dice.choice(_ODD)(dice)
        before, after = dice.choice(_AROUND)
        yield Sample(before + written + after, kind, len(before), len(before) + len(written))


def rows(seed: int, count: int) -> Iterator[Sample]:
    """Rows of measurements, counters and addresses, whose digits joined would often pass a card's check."""
    dice = random.Random(seed)
    for _ in range(count):
        yield Sample(dice.choice(_ROWS)(dice), "", 0, 0)


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
    return _cut(number, groups, dice.choice(" -\u2011"))


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


def _mobile(dice: random.Random) -> str:
    return "1" + dice.choice("3456789") + _digits(dice, 9)


def _plain_number(dice: random.Random) -> tuple[str, str, tuple[int, ...]]:
    """Its kind, digits, and groups to write it in."""
    match dice.randrange(3):
        case 0:
            return "phone", _mobile(dice), dice.choice(((3, 4, 4), (4, 4, 3), (3, 3, 5)))
        case 1:
            number = next(n for n in iter(lambda: _resident_id(dice), "") if len(n) == 18 and n.isascii())
            return "resident-id", number, dice.choice(((6, 8, 4), (6, 4, 4, 4), (6, 4, 2, 2, 4), (4, 4, 4, 4, 2)))
        case _:
            prefix, length, groups = dice.choice(
                (("62", 19, (4, 4, 4, 4, 3)), ("4", 16, (4,) * 4), ("37", 15, (4, 6, 5)))
            )
            return "bank-card", _luhn(prefix + _digits(dice, length - 1 - len(prefix))), groups


def _in_groups(dice: random.Random) -> tuple[str, str]:
    kind, number, groups = _plain_number(dice)
    separators = ("  ", " - ", "–", "—", "/", " / ", "_", "·", "•", "，", "、", "~", "*", "\u3000", "\t", "\u00a0")
    return kind, _cut(number, groups, dice.choice(separators))


def _one_by_one(dice: random.Random) -> tuple[str, str]:
    kind, number, _ = _plain_number(dice)
    return kind, dice.choice(" -\u3000").join(number)


def _in_mixed_widths(dice: random.Random) -> tuple[str, str]:
    kind, number, groups = _plain_number(dice)
    written = _cut(number, groups, dice.choice(("", " ")))
    return kind, "".join(chr(ord(c) + 0xFEE0) if c != " " and dice.random() < 0.5 else c for c in written)


def _in_brackets(dice: random.Random) -> tuple[str, str]:
    left, right = dice.choice(("()", "[]", "（）", "【】"))
    kind, number, groups = _plain_number(dice)
    parts = _cut(number, groups, "\n").split("\n")
    if dice.randrange(2):
        return kind, "".join(f"{left}{part}{right}" for part in parts)
    marked = dice.randrange(len(parts))
    return kind, " ".join(f"{left}{part}{right}" if at == marked else part for at, part in enumerate(parts))


def _as_keycaps(dice: random.Random) -> tuple[str, str]:
    return "phone", "".join(f"{digit}\ufe0f\u20e3" for digit in _mobile(dice))


def _dialled(dice: random.Random) -> tuple[str, str]:
    code = dice.choice(("+86·", "(+86)", "+(86)", "0086 ", "[86]", "+ 86 ", "＋86 ", "+86/", "86-"))
    fixed = dice.choice(
        ("010 8888 {0}", "010/8888{0}", "010.8888{0}", "(010)8888-{0}", "【021】 5555 {0}", "0755-2600{0}转801")
    )
    world = dice.choice(
        ("+49/89/123{0}", "+49 (89) 123{0}", "+1/212/555/{0}", "+33.1.23.45.{0}", "[212] 555-{0}", "1-212-555-{0}")
    )
    last = _digits(dice, 4)
    mobile = code + _cut(_mobile(dice), (3, 4, 4), dice.choice(("", " ", "-")))
    return "phone", dice.choice((mobile, fixed.format(last), world.format(last)))


def _hidden_mail(dice: random.Random) -> tuple[str, str]:
    form = dice.choice(
        (
            "{0} @ example.com",
            "{0}@example。com",
            "{0}(at)example.com",
            "{0} [at] example [dot] com",
            "{0}【at】example.com",
            "{0} at example dot com",
            "{0}@example .com",
            "{0}(@)example.com",
        )
    )
    return "e-mail", form.format("li.wei" + _digits(dice, 2))


def _cut(number: str, groups: tuple[int, ...], separator: str) -> str:
    parts, at = [], 0
    for size in groups:
        parts.append(number[at : at + size])
        at += size
    return separator.join(part for part in [*parts, number[at:]] if part)


_ODD: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    _in_groups,
    _in_groups,
    _one_by_one,
    _in_mixed_widths,
    _in_brackets,
    _as_keycaps,
    _dialled,
    _hidden_mail,
)

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

_ROWS: tuple[Callable[[random.Random], str], ...] = (
    lambda dice: " ".join(f"{dice.uniform(10, 99):.1f}" for _ in range(10)),
    lambda dice: " ".join(f"{dice.uniform(10, 99):.2f}" for _ in range(10)),
    lambda dice: ",".join(f"{dice.uniform(0, 9):.3f}" for _ in range(10)),
    lambda dice: " ".join(str(dice.randrange(10, 99)) for _ in range(12)),
    lambda dice: " ".join(str(dice.randrange(100, 999)) for _ in range(12)),
    lambda dice: " ".join(str(dice.randrange(1000, 9999)) for _ in range(12)),
    lambda dice: ", ".join(str(dice.randrange(1000, 9999)) for _ in range(12)),
    lambda dice: " ".join(str(dice.randrange(10)) for _ in range(24)),
    lambda dice: f"dx {dice.uniform(1, 99):+.6f} dy {dice.uniform(1, 99):+.7f} mm",
    lambda dice: ".".join(str(dice.randrange(256)) for _ in range(4)) + f":{dice.randrange(65536)}",
    lambda dice: "1.3.6.1.2.1." + ".".join(str(dice.randrange(30)) for _ in range(7)),
    lambda dice: f"{dice.uniform(1, 9):.15f}e+{dice.randrange(20):02}",
)
