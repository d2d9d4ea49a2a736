"""What personal data looks like: one pattern a way of writing it, each with the check that its number must pass.

Patterns see text in which look-alikes (full-width digits, other dashes) are ASCII and invisible characters are NUL.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from appliance.masking import numbers

Kind = Literal["resident-id", "passport", "phone", "bank-card", "e-mail"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_GAP = r"[ \t\x00\-.]?"  # between two digits; \x00 stands for invisible characters
_STARTS = r"(?<!\d)(?<!\d\.)"
_NOT_HEX = r"(?<![A-Fa-f])"  # digits in a digest
_AREA = r"0(?:10|2\d|[3-9]\d{2})"  # of China's
_ENDS = r"(?!\d)(?!\.\d)"
_PASSPORT_WORD = re.compile(
    r"(?:passport|护照|護照|reisepass|passeport|pasaporte|passaporto|パスポート|旅券|여권|паспорт)"
    r"[\s:#=\"'._\-]*(?:no\.?|nr\.?|number|num|nº|n°|号码|号|番号|id)?[\s:#=\"'.]*\Z",
    re.IGNORECASE,
)
_IDENTITY_WORD = re.compile(
    r"(?:身份证|身分证|证件|identity|\bid)(?:号码|号|card|number|no\.?|[\s_\-:#=\"'.])*\Z", re.IGNORECASE
)
WORD_WITHIN = 40  # characters before the number


class Pattern(NamedTuple):
    """`check` is given the number without separators and the text before it; no text without `gate` has a match."""

    kind: Kind
    shape: re.Pattern[str]
    check: Callable[[str, str], bool]
    gate: str = ""


def _digits(first: str, at_least: int, at_most: int) -> str:
    """`first`, then so many more digits, each with at most one separator before it."""
    return rf"{first}(?:{_GAP}\d){{{at_least},{at_most}}}"


def _always(number: str, before: str) -> bool:
    return True


def _old_identity(number: str, before: str) -> bool:
    return numbers.is_old_resident_id(number) and _IDENTITY_WORD.search(before) is not None


def _after_passport_word(number: str, before: str) -> bool:
    return _PASSPORT_WORD.search(before) is not None


# In the order of their claims: a number that two of them know is the first one's.
PATTERNS = (
    Pattern(
        "e-mail",
        re.compile(r"[\w.!#$%&'*+/=?^`{|}~\-]{1,64}@(?:[^\W_](?:[\w\-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@])"),
        _always,
        gate="@",
    ),
    Pattern(
        "passport",
        re.compile(r"(?<![A-Z0-9<])[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z0-9<]{14}[\d<]\d(?![A-Z0-9<])"),
        lambda number, _: numbers.is_machine_readable(number),
        gate="<",
    ),
    Pattern(
        "resident-id",
        re.compile(_STARTS + _digits("[1-8]", 16, 16) + _GAP + r"[\dXx](?![0-9A-Za-z])(?!\.\d)"),
        lambda number, _: numbers.is_resident_id(number),
    ),
    Pattern("resident-id", re.compile(_STARTS + _digits("[1-8]", 14, 14) + _ENDS), _old_identity),
    Pattern(
        "bank-card",
        re.compile(_STARTS + _NOT_HEX + _digits("[2-69]", 12, 18) + _ENDS + "(?![A-Za-z])"),
        lambda number, _: numbers.is_bank_card(number),
    ),
    # China's own: ordinary (E, G), diplomatic, official and for Hong Kong and Macao.
    Pattern(
        "passport",
        re.compile(r"(?<![0-9A-Za-z])(?:[EG]\d{8}|E[A-HJ-NP-Z]\d{7}|[DSP]E\d{7}|[HM]\d{8}(?:\d\d)?)(?![0-9A-Za-z])"),
        _always,
    ),
    Pattern(
        "passport",
        re.compile(
            r"(?<![0-9A-Za-z])(?:[A-Za-z]{1,2}[ \-]?\d{6,9}|\d{7,9}|[CFGHJKLMNPRTVWXYZ0-9]{9,10})(?![0-9A-Za-z])"
        ),
        _after_passport_word,
    ),
    Pattern(
        "phone",  # a mobile phone of China's
        re.compile(
            # Hexadecimal digits before it: a digest, not a phone, unless they end the word.
            r"(?:(?<=phone)|(?<=mobile)|(?<![0-9A-Fa-f]))(?<!\d\.)(?:(?:\+|00)?86[ \-\x00]?|\(\+?86\)[ ]?)?"
            + _digits("1[ \x00\\-]?[3-9]", 9, 9)
            + r"(?![0-9A-Za-z])(?!\.\d)"
        ),
        _always,
    ),
    Pattern(
        "phone",  # the world's, with its country code (E.164)
        re.compile(
            r"(?:(?<![\d+])\+[1-9](?:[ \-.\x00]?\(?\d\)?){6,13}"
            r"|(?<![0-9A-Za-z.])00[1-9](?:\d{10,12}|\d{0,2}[ \-](?:[ \-.\x00]?\(?\d\)?){6,12}))" + _ENDS
        ),
        _always,
    ),
    Pattern(
        "phone",  # fixed lines of China's, with an extension; 400 and 800 numbers
        re.compile(
            rf"(?<![\d.\-])(?:\({_AREA}\) ?|{_AREA}[\-\x00 ])[2-9]\d{{6,7}}(?:[\-转]\d{{1,6}})?(?![\d.\-])"
            r"|(?<![\d.\-])[48]00[\- ]\d{3}[\- ]?\d{4}(?![\d.\-])"
        ),
        _always,
    ),
    Pattern(
        "phone",  # North America's, as written there
        re.compile(r"(?<![\d.\-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[\-.])[2-9]\d{2}[\-.]\d{4}(?![\d\-])(?!\.\d)"),
        _always,
    ),
)
