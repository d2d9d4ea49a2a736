"""Which rows of digits are personal numbers: check digits, prefixes and dates, in ASCII and without separators."""

from datetime import date

# GB/T 2260, the first two digits: province, municipality, region; 81 to 83 stand on residence permits (2018).
_PROVINCES = frozenset(
    f"{code}"
    for code in (
        *range(11, 16),
        *range(21, 24),
        *range(31, 38),
        *range(41, 47),
        *range(50, 55),
        *range(61, 66),
        71,
        81,
        82,
        83,
    )
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_resident_id(number: str) -> bool:
    """GB 11643-1999: 17 digits and a check character by ISO 7064 MOD 11-2."""
    if number[:2] not in _PROVINCES or not _is_date(number[6:14]):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, _WEIGHTS, strict=False))
    return _CHECKS[total % 11] == number[17].upper()


def is_old_resident_id(number: str) -> bool:
    """The form of 15 digits that was issued until 1999 and carries no check digit."""
    return number[:2] in _PROVINCES and _is_date("19" + number[6:12])


def _is_date(digits: str) -> bool:
    try:
        born = date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return 1850 <= born.year <= 2100


def is_bank_card(number: str) -> bool:
    """ISO/IEC 7812: an issuer's prefix with a length that it uses, and Luhn's check digit."""
    return _issued(number) and _luhn(number)


def _luhn(number: str) -> bool:
    reverse = number[::-1]
    total = sum(map(int, reverse[::2])) + sum(_DOUBLED[int(digit)] for digit in reverse[1::2])
    return total % 10 == 0


def _issued(number: str) -> bool:
    length, two, four = len(number), int(number[:2]), int(number[:4])
    if number[0] == "4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720 or 2200 <= four <= 2204:  # Mastercard, Mir
        return length == 16
    if two in (34, 37):  # American Express
        return length == 15
    if two in (30, 36, 38, 39):  # Diners Club
        return length in (14, 16)
    if two == 62:  # UnionPay
        return 16 <= length <= 19
    if 3528 <= four <= 3589 or four == 6011 or 644 <= int(number[:3]) <= 659:  # JCB, Discover
        return 16 <= length <= 19
    # Chinese debit cards older than UnionPay's own range.
    return (two in (60, 68, 69, 90, 94, 95, 98, 99) or four == 4367) and length in (16, 18, 19)


def is_machine_readable(line: str) -> bool:
    """ICAO 9303 part 4, the second line of a passport's machine-readable zone: 44 characters, three check digits."""
    return all(_icao_check(line[start:end]) == line[end] for start, end in ((0, 9), (13, 19), (21, 27)))


def _icao_check(field: str) -> str:
    total = sum(_icao_value(character) * (7, 3, 1)[place % 3] for place, character in enumerate(field))
    return str(total % 10)


def _icao_value(character: str) -> int:
    return 0 if character == "<" else int(character, 36)
