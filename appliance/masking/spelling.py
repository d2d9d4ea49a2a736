"""How people group the digits of a number they write: what tells a card from a row of measurements."""

import re

_CODE = re.compile(r"[(\[{]?\+? ?(?:00 ?)?[(\[{]?0?86[)\]}]?[^\d]*(?=1)")  # China's country code
_GROUP = re.compile(r"[0-9A-Za-z]+")
_BETWEEN = re.compile(r"[^0-9A-Za-z]+")

_MOBILES = {
    (3, 4, 4), (3, 8), (4, 4, 3), (3, 3, 5), (7, 4), (5, 6), (4, 3, 4), (3, 2, 2, 2, 2), (3, 4, 2, 2), (3, 3, 3, 2),
    (1, 2, 4, 4), (1,) * 11,
}  # fmt: skip
_POINTED = {(3, 4, 4), (4, 4, 3), (3, 3, 5), (4, 3, 4)}
_CARDS = {(4, 6, 5), (4, 6, 4), (4, 8, 4), (4, 4, 8)}
_CARD_GROUPS = (4, 5, 6, 8)


def is_mobile(written: str) -> bool:
    """Of 11 digits, perhaps behind 86."""
    own = _CODE.sub("", written, count=1) if _CODE.match(written) and len(_digits(written)) > 11 else written
    groups, _ = _split(own)
    if len(groups) <= 1:
        return True
    if "." in own:  # one point is a decimal point, four are an address's
        return groups in _POINTED
    return groups in _MOBILES


def is_international(written: str) -> bool:
    """Behind a plus. One point and nothing else is a number with its sign."""
    return "".join(_split(written)[1]) != "."


def is_bank_card(written: str) -> bool:
    """In groups of one size, whose last may be shorter, or the ways of issuers with other ones."""
    groups, between = _split(written)
    if len(groups) == 1 or groups in _CARDS:
        return True
    if any("." in one for one in between) and set(between) != {"."}:
        return False
    if groups[0] == 1:
        return set(groups) == {1} and len(set(between)) == 1
    if groups[0] == 6 and len(groups) == 2:
        return True
    return groups[0] in _CARD_GROUPS and set(groups[:-1]) == {groups[0]} and groups[-1] <= groups[0]


def is_resident_id(written: str) -> bool:
    """Its check is strong: only rows of small groups are none. Month and day may stand alone."""
    groups, _ = _split(written)
    if len(groups) == 1 or set(groups) == {1}:
        return True
    small = [place for place, size in enumerate(groups[:-1]) if size < 3]
    return not small or (len(small) == 2 and small[1] == small[0] + 1 and groups[small[0] - 1] == 4)


def is_in_a_row(groups_of: str, before: str, after: str) -> bool:
    """Two or more groups of the same size and separator stand on either side of `groups_of`, all in all."""
    groups, between = _split(groups_of)
    if len(groups) < 2:
        return False
    size, separator = groups[0], re.escape(between[0])
    more = re.match(rf"(?:{separator}\d{{{size}}}(?!\d)){{1,2}}", after)
    less = re.search(rf"(?:(?<!\d)\d{{{size}}}{separator}){{1,2}}\Z", before)
    extra = sum(len(_GROUP.findall(one[0])) for one in (more, less) if one)
    return extra >= (1 if size == 1 else 2)


def _split(written: str) -> tuple[tuple[int, ...], list[str]]:
    """Sizes of the groups, and what stands between them."""
    visible = written.replace("\x00", "")
    sizes = tuple(len(group) for group in _GROUP.findall(visible))
    return sizes, [one[0] for one in _BETWEEN.finditer(visible) if one.start() > 0 and one.end() < len(visible)]


def _digits(written: str) -> str:
    return "".join(_GROUP.findall(written.replace("\x00", "")))
