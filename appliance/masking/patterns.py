"""What personal data looks like: one pattern a way of writing it, each with the check that its number must pass.

Patterns see text in which look-alikes (full-width digits, other dashes and brackets) are ASCII, what people put between
digits for the eye is `~`, and invisible characters are NUL. Shapes are generous about what stands between digits; how
the digits are grouped must then be a way in which somebody writes that kind (`spelling`): rows of measurements are not.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from appliance.masking import numbers, spelling

Kind = Literal["resident-id", "passport", "phone", "bank-card", "e-mail"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_GAP = r"[ \t\x00\-./_~*()\[\]{}]{0,6}+"  # between two digits; \x00 stands for invisible characters
_WIDE = r"[ \t\x00\-./_~*()\[\]{},|:\\]{0,6}+"  # where the number's own check is strong
_BREAK = r"[ \t\x00\-./_~*]{1,4}+"
_OPEN, _SHUT = r"[(\[{]", r"[)\]}]"
_STARTS = r"(?<!\d)(?<!\d\.)"
_NOT_HEX = r"(?<![A-Fa-f])"  # digits in a digest
_AREA = r"0(?:10|2\d|[3-9]\d{2})"  # of China's
_ENDS = r"(?!\d)(?!\.\d)"
_LOCAL = r"[\w.!#$%&'*+/=?^`{|}~\-\x00]{1,64}"
_TOP = r"[^\W\d_]{2,24}(?![\w@])"
_PASSPORT_NAMES = "passport|护照|護照|reisepass|passeport|pasaporte|passaporto|パスポート|旅券|여권|паспорт"
_PASSPORT_WORD = re.compile(
    rf"(?:{_PASSPORT_NAMES})"
    r"[\s:#=\"'._\-]*(?:no\.?|nr\.?|number|num|nº|n°|号码|号|番号|id)?[\s:#=\"'.]*\Z",
    re.IGNORECASE,
)
_IDENTITY_WORD = re.compile(
    r"(?:身份证|身分证|证件|identity|\bid)(?:号码|号|card|number|no\.?|[\s_\-:#=\"'.])*\Z", re.IGNORECASE
)
_PHONE_NAMES = r"电话|電話|手机|手機|座机|传真|傳真|热线|联系方式|\btel|\bfax|phone|mobile|\bcall|telefon"
_PHONE_WORD = re.compile(
    rf"(?:{_PHONE_NAMES})"
    r"(?:号码|号|number|no\.?|[\s_\-:#=\"'.])*\Z",
    re.IGNORECASE,
)
WORD_WITHIN = 40  # characters before the number


def _as_it_comes(written: str) -> bool:
    return True


class Pattern(NamedTuple):
    """`check` is given the number without separators and the text before it, `spelled` the number as it is written. A
    text with fewer `digits`, or without what `gate` looks for, has no match. `rows`: a long row of such groups may hold
    one."""

    kind: Kind
    shape: re.Pattern[str]
    check: Callable[[str, str], bool]
    digits: int = 0
    gate: Callable[[str], object] = bool
    spelled: Callable[[str], bool] = _as_it_comes
    rows: bool = True


def _digits(first: str, at_least: int, at_most: int, gap: str = _GAP) -> str:
    """`first`, then so many more digits with gaps before them."""
    return rf"{first}(?:{gap}\d){{{at_least},{at_most}}}"


def _has_one_of(*words: str) -> Callable[[str], bool]:
    return lambda text: any(word in text for word in words)


def _named(text: str, names: str) -> bool:
    lower = text.casefold()
    return any(name.removeprefix(r"\b") in lower for name in names.split("|"))


def _always(number: str, before: str) -> bool:
    return True


def _old_identity(number: str, before: str) -> bool:
    return numbers.is_old_resident_id(number) and _IDENTITY_WORD.search(before) is not None


def _after_passport_word(number: str, before: str) -> bool:
    return _PASSPORT_WORD.search(before) is not None


def _after_phone_word(number: str, before: str) -> bool:
    return _PHONE_WORD.search(before) is not None


# In the order of their claims: a number that two of them know is the first one's.
PATTERNS = (
    Pattern(
        "e-mail",
        re.compile(
            _LOCAL + r"[ \t]{0,2}@[ \t\x00]{0,2}(?:[^\W_](?:[\w\x00\-]{0,61}[^\W_])?[ \x00]?\.[ \x00]?){1,8}" + _TOP
        ),
        _always,
        gate=lambda text: "@" in text,
    ),
    Pattern(
        "e-mail",  # as people hide it from programs
        re.compile(
            _LOCAL
            + rf" ?(?:{_OPEN} ?(?:@|at) ?{_SHUT}|<at>| at (?=[\w\-]+ dot )) ?"
            + rf"(?:[^\W_](?:[\w\-]{{0,61}}[^\W_])?(?: ?{_OPEN}dot{_SHUT} ?| dot |\.)){{1,8}}"
            + _TOP,
            re.IGNORECASE,
        ),
        _always,
        gate=_has_one_of("at)", "at]", "at}", "at>", "AT)", "AT]", "AT}", "@)", "@]", "@}", " )", " dot ", " DOT "),
    ),
    Pattern(
        "passport",
        re.compile(r"(?<![A-Z0-9<])[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z0-9<]{14}[\d<]\d(?![A-Z0-9<])"),
        lambda number, _: numbers.is_machine_readable(number),
        digits=17,
        gate=lambda text: "<" in text,
    ),
    Pattern(
        "resident-id",
        re.compile(
            _STARTS
            + _digits("[1-8]", 5, 5, _WIDE)
            + rf"{_WIDE}(?:1{_WIDE}[89]|2{_WIDE}[01])(?:{_WIDE}\d){{2}}{_WIDE}[01]{_WIDE}\d{_WIDE}[0-3]"
            + rf"(?:{_WIDE}\d){{4}}{_WIDE}[\dXx](?![0-9A-Za-z])(?!\.\d)"
        ),
        lambda number, _: numbers.is_resident_id(number),
        digits=17,
        spelled=spelling.is_resident_id,
    ),
    Pattern(
        "resident-id",
        re.compile(_STARTS + _digits("[1-8]", 14, 14) + _ENDS),
        _old_identity,
        digits=15,
        gate=_has_one_of("证", "id", "ID", "Id", "dentity"),
        spelled=spelling.is_resident_id,
        rows=False,
    ),
    Pattern(
        "bank-card",
        re.compile(_STARTS + _NOT_HEX + _digits("[2-69]", 12, 18) + _ENDS + "(?![A-Za-z])"),
        lambda number, _: numbers.is_bank_card(number),
        digits=13,
        spelled=spelling.is_bank_card,
        rows=False,
    ),
    # China's own: ordinary (E, G), diplomatic, official and for Hong Kong and Macao.
    Pattern(
        "passport",
        re.compile(r"(?<![0-9A-Za-z])(?:[EG]\d{8}|E[A-HJ-NP-Z]\d{7}|[DSP]E\d{7}|[HM]\d{8}(?:\d\d)?)(?![0-9A-Za-z])"),
        _always,
        digits=7,
        gate=_has_one_of(*"EGDSPHM"),
    ),
    Pattern(
        "passport",
        re.compile(
            r"(?<![0-9A-Za-z])(?:[A-Za-z]{1,2}[ \-]?\d(?:[ \-]?\d){5,8}|\d{7,9}|[CFGHJKLMNPRTVWXYZ0-9]{9,10})"
            r"(?![0-9A-Za-z])"
        ),
        _after_passport_word,
        digits=4,
        gate=lambda text: _named(text, _PASSPORT_NAMES),
    ),
    Pattern(
        "phone",  # a mobile phone of China's
        re.compile(
            # Hexadecimal digits before it: a digest, not a phone, unless they end the word.
            r"(?:(?<=phone)|(?<=mobile)|(?<![0-9A-Fa-f]))(?<!\d\.)"
            rf"(?:(?:{_OPEN}?\+ ?{_OPEN}?0?|{_OPEN}?(?:00 ?)?)86{_SHUT}?{_GAP})?"
            + _digits(rf"1{_GAP}[3-9]", 9, 9)
            + r"(?![0-9A-Za-z])(?!\.\d)"
        ),
        _always,
        digits=11,
        spelled=spelling.is_mobile,
        rows=False,
    ),
    Pattern(
        "phone",  # the world's, with its country code (E.164)
        re.compile(
            rf"(?:(?<![\d+])\+ ?[1-9](?:{_GAP}\d){{6,14}}"
            r"|(?<![0-9A-Za-z.])00[1-9](?:\d{10,12}|\d{0,2}[ \-](?:[ \-.\x00]?\(?\d\)?){6,12}))" + _ENDS
        ),
        _always,
        digits=7,
        gate=_has_one_of("+", "00"),
        spelled=spelling.is_international,
    ),
    Pattern(
        "phone",  # fixed lines of China's, with an extension; 400 and 800 numbers
        re.compile(
            rf"(?<!\d)(?<!\d[.\-])(?:{_OPEN}{_AREA}{_SHUT}[ \-]{{0,3}}|{_AREA}{_BREAK})"
            rf"[2-9]\d{{2,3}}(?:{_BREAK})?\d{{4}}(?: ?(?:\-|转|ext\.?|分机) ?\d{{1,6}})?{_ENDS}(?!\-\d)"
            rf"|(?<!\d)(?<!\d[.\-])[48]00[\- .~](?:\d{{3}}[\- .~]?\d{{4}}|\d{{4}}[\- .~]?\d{{3}}){_ENDS}(?!\-\d)"
        ),
        _always,
        digits=10,
        gate=_has_one_of("010", "02", "03", "04", "05", "06", "07", "08", "09", "400", "800"),
    ),
    Pattern(
        "phone",  # North America's, as written there
        re.compile(
            r"(?<!\d)(?<!\d[.\-])(?:1[\-. ])?(?:[(\[][2-9]\d{2}[)\]] ?|[2-9]\d{2}[\-./])[2-9]\d{2}[\-.]\d{4}"
            + _ENDS
            + r"(?!\-\d)"
        ),
        _always,
        digits=10,
        gate=_has_one_of("-", "."),
    ),
    Pattern(
        "phone",  # what only the word before it tells
        re.compile(rf"(?<!\d)(?:{_AREA}[2-9]\d{{6,7}}|[48]00\d{{7}}|[2-9]\d{{2}} [2-9]\d{{2}} \d{{4}})(?!\d)"),
        _after_phone_word,
        digits=10,
        gate=lambda text: _named(text, _PHONE_NAMES),
    ),
)
