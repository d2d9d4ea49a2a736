"""Finds personal data in text: `find(text)` gives the places, in order and without overlap.

Numbers are looked for as people write them: in groups, with hyphens, in full-width digits, with invisible characters
between them. What is found must also pass the number's own check (check digit, date, issuer's prefix); where a kind has
none, a word such as "passport" must stand before it.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from appliance.masking.patterns import PATTERNS, WORD_WITHIN, Kind, Pattern
from appliance.masking.spelling import is_in_a_row


class Finding(NamedTuple):
    kind: Kind
    start: int  # of the text's characters
    end: int


_WORTH_A_LOOK = re.compile(r"\d|[@\uff20\ufe6b]|[(\[{（【<](?i:at)[)\]}）】>]| (?i:dot) ")
_OTHERS = bytes(code for code in range(256) if not chr(code).isdigit() or code > 0x7F)
_SEPARATORS = re.compile(r"[ \t\x00\-./_~*()\[\]{},|:\\]+")


def find(text: str) -> list[Finding]:
    """Places in the order of the text. Where two kinds claim the same characters the first of PATTERNS wins."""
    if not _WORTH_A_LOOK.search(text):
        return []
    plain = _plain(text)
    digits = len(plain.encode("ascii", "replace").translate(None, _OTHERS))
    taken: list[Finding] = []
    for pattern in PATTERNS:
        found = list(_matches(pattern, plain)) if digits >= pattern.digits and pattern.gate(plain) else []
        if found:
            plain = _without(plain, found)
            taken += found
    return sorted(taken, key=lambda one: one.start)


def _without(text: str, found: list[Finding]) -> str:
    """The text with what was found made unreadable, so that no later pattern claims it; places stay."""
    parts, at = [], 0
    for one in found:
        parts += [text[at : one.start], "\x01" * (one.end - one.start)]
        at = one.end
    return "".join([*parts, text[at:]])


def _matches(pattern: Pattern, text: str) -> Iterator[Finding]:
    at = 0
    while match := pattern.shape.search(text, at):
        start = match.start()
        before = text[max(0, start - WORD_WITHIN) : start]
        end = _checked_end(pattern, match, before)
        if end and not pattern.rows and is_in_a_row(text[start:end], before, text[end : end + WORD_WITHIN]):
            end = 0
        if end:
            while text[end : end + 1] == "\x00":  # the frame of a keycap
                end += 1
            yield Finding(pattern.kind, start, end)
        at = end or start + 1  # the next group of digits may begin a number that this one ran into


def _checked_end(pattern: Pattern, match: re.Match[str], before: str) -> int:
    """Where the number ends; 0: it is none. It may have run into the one behind it: "4111 1111 1111 1111 12 kg"."""
    written = match[0]
    while not (pattern.spelled(written) and pattern.check(_SEPARATORS.sub("", written), before)):
        places = [separator.start() for separator in _SEPARATORS.finditer(written)]
        written = written[: places[-1]] if places else ""
        if not pattern.shape.fullmatch(written):
            return 0
    return match.start() + len(written)


def _look_alikes() -> dict[int, str]:
    """Characters that NFKC turns into one ASCII character, and invisible ones: one for one, so that places stay."""
    table = {}
    for code in range(0x80, 0x20000):
        character = chr(code)
        if unicodedata.category(character) == "Cf":
            table[code] = "\x00"
        elif len(plain := unicodedata.normalize("NFKC", character)) == 1 and plain.isascii():
            table[code] = plain
        elif unicodedata.category(character) == "Nd":
            table[code] = str(unicodedata.digit(character))
    table.update(dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2015, 0x2212, 0x30FC, 0xFF0D), "-"))  # dashes
    # What stands between digits for the eye: dots in the middle, Chinese commas; not the comma of a table.
    table.update(dict.fromkeys(map(ord, "·•‧∙⋅・･、，"), "~"))
    table.update({ord("。"): ".", ord("｡"): ".", 0xFE0F: "\x00", 0x20E3: "\x00"})  # the last two: keycaps
    table.update(zip(map(ord, "【】〔〕［］「」"), "[][][][]", strict=True))
    return table


_LOOK_ALIKES = _look_alikes()
_FOREIGN = re.compile(r"[^\x00-\x7f]+")


def _plain(text: str) -> str:
    return text if text.isascii() else _FOREIGN.sub(lambda match: match[0].translate(_LOOK_ALIKES), text)
