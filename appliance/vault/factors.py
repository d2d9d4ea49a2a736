"""Which facts of a box are worth binding a key to: junk is rejected, the rest is weighed, the best are chosen. Pure.

A factor is a part that can be replaced on its own, not a number: the serial numbers that one tool writes into the
firmware are one factor, and so are the neighbouring addresses of ports on one board. What every box of a model shares
(the processor's name, the board's) is no factor: a clone on a sibling would have it for nothing.

Bits are estimates, on the low side: what is left to guess for somebody who knows maker and model.
"""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

MAX_FACTORS = 7
MAX_CANDIDATES = 24  # factors of a box that are tried when it opens
MIN_FACTOR_BITS = 12
MAX_VALUE = 128  # characters
MAX_LABEL = 40
SECRET_BITS = 256
ONE_BOARD = 16  # addresses this near each other were given to one board

_EACH = 2  # of a kind at most: disks and modules of a server come and go together


@dataclass(frozen=True)
class Kind:
    words: str
    cap_bits: int  # never worth more, however long it is
    on_disk: bool = False  # whoever steals the disk has it
    single: bool = True  # a box has one, whatever place it is read from


# The steadiest first: subsets are tried in this order, and what is replaced most often is left out first.
KINDS = {
    "system-uuid": Kind("the system's UUID", 64),
    "serial": Kind("the serial number in the firmware", 24),
    "cpu-serial": Kind("the processor's serial number", 32),
    "tree-serial": Kind("the board's serial number", 32),
    "soc-serial": Kind("the chip's serial number", 32),
    "nic": Kind("network port", 24, single=False),
    "memory": Kind("memory module", 24, single=False),
    "disk": Kind("disk", 32, on_disk=True, single=False),
}
SHARED = {"cpu-model": "the processor's model", "board-model": "the board's model"}

# Letters and digits only, as they stand in firmware that nobody has filled in.
_FILLERS = frozenset(
    """
    tobefilledbyoem tobefilledbyo defaultstring default none na null notspecified notapplicable notavailable notsettable
    notprovided systemserialnumber chassisserialnumber baseboardserialnumber mbserialnumber serialnumber serial noserial
    systemproductname unknown oem oemserial empty invalid undefined unspecified test sample nodimm eval
    engineeringsample 0xdeadbeef deadbeef cafebabe
    """.split()  # noqa: SIM905  # a table of words, not of quotes
)
_COUNTING = string.digits * 4 + string.hexdigits[:16] * 2
_FACTORY_UUIDS = {
    "123456781234567890abcddeefaabbcc",
    "12345678123412341234123456789012",
    "1234567812345678901234567890abcd",
}
# Prefixes of addresses that chips have before a maker gives them one, and of hypervisors' defaults.
_FACTORY_ADDRESSES = {
    "001122334455": "an example",
    "123456": "an example",
    "00e04c6800": "Realtek's default",
    "00e04c3600": "Realtek's default",
    "000c432880": "Ralink's default",
    "000c437628": "MediaTek's default",
    "00904c": "Broadcom's default",
    "00037f": "Atheros' default",
    "525400": "QEMU's default",
}


class Fact(Protocol):
    """See `hardware.identity`."""

    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def model(self) -> str: ...


@dataclass(frozen=True)
class Slot:
    """Which part, and nothing of what it says: stands in the blob and in messages."""

    kind: str
    place: str = ""
    model: str = ""

    @property
    def words(self) -> str:
        named = f"{KINDS[self.kind].words} {self.place}".strip()
        return f"{named} ({self.model})" if self.model else named


@dataclass(frozen=True)
class Factor:
    slot: Slot
    value: str = field(repr=False)  # normalised
    bits: int


@dataclass(frozen=True)
class Verdict:
    """A part that was looked at. It is a factor where `reason` is empty."""

    slot: Slot
    bits: int
    reason: str = ""
    factor: Factor | None = None


def judge(facts: Iterable[Fact]) -> list[Verdict]:
    """Every part of a known kind, the steadiest first. A part with several values counts by its first good one."""
    parts: dict[tuple[str, str], list[Fact]] = {}
    for fact in sorted((fact for fact in facts if fact.kind in KINDS), key=lambda fact: list(KINDS).index(fact.kind)):
        parts.setdefault((fact.kind, "" if KINDS[fact.kind].single else fact.place), []).append(fact)
    return _distinct(_neighbours([_first_good(part) for part in parts.values()]))


def candidates(facts: Iterable[Fact]) -> list[Factor]:
    """All that could be a factor: what a vault is opened with."""
    return [verdict.factor for verdict in judge(facts) if verdict.factor][:MAX_CANDIDATES]


def chosen(found: Sequence[Factor]) -> list[Factor]:
    """At most MAX_FACTORS: one of each kind before the second of any, in their order."""
    ranks: dict[str, int] = {}
    ranked: list[tuple[int, int]] = []
    for index, factor in enumerate(found):
        rank = ranks[factor.slot.kind] = ranks.get(factor.slot.kind, -1) + 1
        if rank < _EACH:
            ranked.append((rank, index))
    return [found[index] for index in sorted(index for _, index in sorted(ranked)[:MAX_FACTORS])]


def normal(kind: str, value: str) -> str:
    """The same part gives the same text, however a kernel's release spells it."""
    text = " ".join(value.split()).lower()[:MAX_VALUE]
    return re.sub(r"[^0-9a-f]", "", text) if kind in ("nic", "system-uuid") else text


def junk(kind: str, value: str) -> str:
    """Why a normalised value tells nothing of the box; empty where it may."""
    letters = _letters(value)
    if not letters:
        return "empty"
    if letters in _FILLERS or letters.startswith(("tobefilled", "defaultstring")):
        return "filler that the maker left in"
    if len(set(letters)) <= 2:
        return "the same digits again and again"
    if letters in _COUNTING or letters[::-1] in _COUNTING:
        return "it counts up: a filler"
    match kind:
        case "nic":
            return _junk_address(letters)
        case "system-uuid":
            return _junk_uuid(letters)
        case _:
            return _junk_serial(letters)


def estimated_bits(kind: str, value: str) -> int:
    """Of a normalised value that is not junk."""
    cap = KINDS[kind].cap_bits
    if kind == "nic":
        return cap  # the maker's half is known
    if kind == "system-uuid":  # version 4 is random; others are made of a date, an address or a service tag
        return cap if value[12:13] == "4" and value[16:17] in ("8", "9", "a", "b") else 24
    return min(cap, 3 * len(set(_letters(value))))


def _first_good(part: Sequence[Fact]) -> Verdict:
    verdicts = [_judged(fact) for fact in part]
    return next((verdict for verdict in verdicts if verdict.factor), verdicts[0])


def _judged(fact: Fact) -> Verdict:
    slot = Slot(fact.kind, fact.place[:MAX_LABEL], fact.model[:MAX_LABEL])
    value = normal(fact.kind, fact.value)
    reason = junk(fact.kind, value)
    bits = 0 if reason else estimated_bits(fact.kind, value)
    if not reason and bits < MIN_FACTOR_BITS:
        reason = "too little to tell one box from another"
    return Verdict(slot, bits, reason, None if reason else Factor(slot, value, bits))


def _junk_address(digits: str) -> str:
    if len(digits) != 12:
        return "not an Ethernet address"
    first = int(digits[:2], 16)
    if first & 1:
        return "a group's address"
    for prefix, whose in _FACTORY_ADDRESSES.items():
        if digits.startswith(prefix):
            return f"{whose}, the same in many boxes"
    if first & 2:
        return "made up by software (locally administered)"
    return ""


def _junk_uuid(digits: str) -> str:
    if len(digits) != 32:
        return "not a UUID"
    if digits in _FACTORY_UUIDS:
        return "a well-known filler"
    if digits.startswith("4c4c4544"):
        return "made of the service tag (Dell)"
    words = (digits[at : at + 4] for at in range(0, 32, 4))
    if all("00" in (word[:2], word[2:]) for word in words):  # 03000200-0400-0500-0006-000700080009 and its kin
        return "it counts up: a filler"
    return ""


def _junk_serial(letters: str) -> str:
    if not any(letter.isdigit() for letter in letters):
        return "a word, not a number"
    if re.fullmatch(r"qm0+\d", letters):
        return "QEMU's default"
    if letters.startswith("vmware"):
        return "follows from the system's UUID"
    return "" if len(letters) >= 4 else "too short"


def _neighbours(verdicts: list[Verdict]) -> list[Verdict]:
    """Of ports whose addresses follow each other only the first counts: they are on one board, and one is guessed from
    the other."""
    kept: list[Verdict] = []
    last = -2 * ONE_BOARD
    ports = sorted((v.factor.value, at) for at, v in enumerate(verdicts) if v.factor and v.slot.kind == "nic")
    follows = set()
    for value, at in ports:
        number = int(value, 16)
        if number - last <= ONE_BOARD:
            follows.add(at)
        last = number
    for at, verdict in enumerate(verdicts):
        kept.append(_rejected(verdict, "follows from its neighbour's address") if at in follows else verdict)
    return kept


def _distinct(verdicts: list[Verdict]) -> list[Verdict]:
    """A value that contains an earlier one, or is contained in it, adds nothing, and makes it worth no more than the
    lesser of the two: serial numbers and UUIDs are made of addresses, and addresses of serial numbers."""
    kept: list[Verdict] = []
    for verdict in verdicts:
        same = next((at for at, earlier in enumerate(kept) if _overlap(earlier.factor, verdict.factor)), None)
        if same is None:
            kept.append(verdict)
            continue
        kept[same] = _worth(kept[same], verdict.bits)
        kept.append(_rejected(verdict, f"says the same as {kept[same].slot.words}"))
    return kept


def _overlap(earlier: Factor | None, later: Factor | None) -> bool:
    if earlier is None or later is None:
        return False
    one, other = _letters(earlier.value), _letters(later.value)
    if later.slot.kind == "nic" != earlier.slot.kind:
        other = other[-6:]  # the maker's half is no part of a serial number
    return one in other or other in one


def _worth(verdict: Verdict, bits: int) -> Verdict:
    assert verdict.factor is not None
    least = min(verdict.bits, bits)
    return replace(verdict, bits=least, factor=replace(verdict.factor, bits=least))


def _rejected(verdict: Verdict, reason: str) -> Verdict:
    return Verdict(verdict.slot, 0, reason)


def _letters(value: str) -> str:
    return re.sub(r"[^0-9a-z]", "", value)
