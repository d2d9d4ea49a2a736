"""Which facts of a box are junk, what the rest is worth, and which are chosen."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.vault import factors
from appliance.vault.factors import KINDS, MAX_FACTORS, candidates, chosen, judge, junk, normal
from hardware.identity import Fact

JUNK = [
    ("system-uuid", "03000200-0400-0500-0006-000700080009", "counts up"),
    ("system-uuid", "00020003-0004-0005-0006-000700080009", "counts up"),
    ("system-uuid", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "same digits"),
    ("system-uuid", "00000000-0000-0000-0000-000000000000", "same digits"),
    ("system-uuid", "fefefefe-fefe-fefe-fefe-fefefefefefe", "same digits"),
    ("system-uuid", "12345678-1234-5678-90ab-cddeefaabbcc", "well-known"),
    ("system-uuid", "4c4c4544-0043-3510-8052-b4c04f4d3132", "service tag"),
    ("system-uuid", "Not Settable", "not a UUID"),
    ("serial", "To be filled by O.E.M.", "filler"),
    ("serial", "To Be Filled By O.E.M. 7", "filler"),
    ("serial", "Default string", "filler"),
    ("serial", "None", "filler"),
    ("serial", "System Serial Number", "filler"),
    ("serial", "Not Specified", "filler"),
    ("serial", "0123456789", "counts up"),
    ("serial", "1234567890", "counts up"),
    ("serial", "987654321", "counts up"),
    ("serial", "00000000", "same digits"),
    ("serial", "XXXXXXXXXX", "same digits"),
    ("serial", "- - -", "empty"),
    ("serial", "", "empty"),
    ("serial", "overlayblk", "a word"),
    ("serial", "A4X", "too short"),
    ("serial", "VMware-56 4d 1f 0e 9a 47 4d 3e-8c 55 0b 72 e1 f4 a9 d3", "follows from"),
    ("disk", "QM00001", "QEMU's default"),
    ("disk", "0xdeadbeef", "filler"),
    ("memory", "NO DIMM", "filler"),
    ("nic", "00:00:00:00:00:00", "same digits"),
    ("nic", "ff:ff:ff:ff:ff:ff", "same digits"),
    ("nic", "02:42:ac:11:00:02", "locally administered"),
    ("nic", "3e:1e:3c:4e:d9:44", "locally administered"),
    ("nic", "52:54:00:12:34:56", "QEMU's default"),
    ("nic", "00:11:22:33:44:55", "an example"),
    ("nic", "00:e0:4c:68:00:01", "Realtek's default"),
    ("nic", "01:00:5e:7f:1a:2b", "group"),
    ("nic", "a8:b8:e0:05", "not an Ethernet address"),
]

GOOD = [
    ("system-uuid", "6F1C2B0E-9A47-4D3E-8C55-0B72E1F4A9D3", 64),
    ("system-uuid", "2f8a1c30-7b5e-11eb-8529-5f0d9e4a7c11", 24),  # of a date and an address
    ("serial", "7C5RM12", 21),
    ("cpu-serial", "0x2b3f1c90d47ae586", 32),
    ("tree-serial", "10000000c3a81f5e", 27),
    ("nic", "A8-B8-E0-05-1C-4D", 24),
    ("memory", "7A31C9E4", 24),
    ("disk", "S6P7NF0W412088K", 32),
    ("disk", "eui.0025385c31b0a7f2", 32),
]


def fact(kind: str, value: str, place: str = "") -> Fact:
    return Fact(kind, value, place)


def reasons(*facts: Fact) -> list[str]:
    return [verdict.reason for verdict in judge(facts)]


@pytest.mark.parametrize(("kind", "value", "why"), JUNK)
def test_junk_is_rejected_and_says_why(kind: str, value: str, why: str) -> None:
    assert why in junk(kind, normal(kind, value))
    assert candidates([fact(kind, value)]) == []


@pytest.mark.parametrize(("kind", "value", "bits"), GOOD)
def test_what_is_a_boxes_own_is_weighed(kind: str, value: str, bits: int) -> None:
    (factor,) = candidates([fact(kind, value)])
    assert factor.bits == bits
    assert factor.value not in repr(factor)


def test_a_number_that_tells_too_little_is_no_factor() -> None:
    assert reasons(fact("serial", "0000A7")) == ["too little to tell one box from another"]


def test_a_part_counts_by_its_first_good_value() -> None:
    (found,) = candidates([fact("serial", "Default string"), fact("serial", "7C5RM12"), fact("serial", "CNFCP0019K")])
    assert found.value == "7c5rm12"
    (found,) = candidates([fact("disk", "00000000", "nvme0n1"), fact("disk", "eui.0025385c31b0a7f2", "nvme0n1")])
    assert found.value.startswith("eui.")


def test_neighbouring_addresses_are_one_board() -> None:
    ports = [fact("nic", f"a8:b8:e0:05:1c:{last:02x}", f"p{last}") for last in (0x4F, 0x4D, 0x4E, 0x50, 0xA0)]
    assert [found.slot.place for found in candidates(ports)] == ["p77", "p160"]


def test_a_serial_number_made_of_an_address_is_worth_no_more() -> None:
    verdicts = judge([fact("nic", "9c:9d:7e:4a:10:f2", "eth0"), fact("tree-serial", "9C9D7E4A10F2")])
    assert [(verdict.slot.kind, verdict.bits, bool(verdict.factor)) for verdict in verdicts] == [
        ("tree-serial", 24, True),
        ("nic", 0, False),
    ]


def test_an_address_made_of_a_serial_number_adds_nothing() -> None:
    found = candidates([fact("tree-serial", "00000000d54a10f2"), fact("nic", "b8:27:eb:4a:10:f2", "eth0")])
    assert [factor.slot.kind for factor in found] == ["tree-serial"]


def test_kinds_that_nobody_knows_are_left_out() -> None:
    assert judge([fact("cpu-model", "Intel(R) N100"), fact("aura", "7C5RM12")]) == []


KIND = st.sampled_from([*KINDS, "cpu-model", "aura"])
VALUE = st.one_of(st.text(max_size=40), st.from_regex(r"[0-9a-f:]{12,17}", fullmatch=True))
FACTS = st.lists(st.builds(Fact, KIND, VALUE, st.sampled_from(["", "a", "b", "c"]), st.text(max_size=60)), max_size=30)


@given(FACTS)
def test_whatever_a_box_says_few_distinct_factors_come_of_it(facts: list[Fact]) -> None:
    found = candidates(facts)
    picked = chosen(found)
    assert len(picked) <= MAX_FACTORS
    assert all(factor.bits >= factors.MIN_FACTOR_BITS and not junk(factor.slot.kind, factor.value) for factor in found)
    assert len({(factor.slot.kind, factor.value) for factor in found}) == len(found)
    assert max(Counter(factor.slot.kind for factor in picked).values(), default=0) <= 2
    assert [factor for factor in found if factor in picked] == picked


@given(KIND, VALUE)
def test_normalising_is_done_once_and_for_all(kind: str, value: str) -> None:
    once = normal(kind, value)
    assert normal(kind, once) == once
    assert normal(kind, f"  {value.upper().lower()}\n") == normal(kind, value.upper().lower())


def test_one_of_each_kind_comes_before_the_second_of_any() -> None:
    disks = [fact("disk", f"S6P7NF0W4120{number}", f"sd{number}") for number in (31, 45, 78)]
    modules = [fact("memory", f"7A31C9{number}", f"A{number}") for number in (11, 24, 63)]
    rest = [
        fact("system-uuid", "6f1c2b0e-9a47-4d3e-8c55-0b72e1f4a9d3"),
        fact("serial", "7C5RM12"),
        fact("cpu-serial", "0x2b3f1c90d47ae586"),
        fact("nic", "a8:b8:e0:05:1c:4d", "eth0"),
    ]
    picked = [(factor.slot.kind, factor.slot.place) for factor in chosen(candidates([*disks, *modules, *rest]))]
    assert picked == [
        ("system-uuid", ""),
        ("serial", ""),
        ("cpu-serial", ""),
        ("nic", "eth0"),
        ("memory", "A11"),
        ("memory", "A24"),
        ("disk", "sd31"),
    ]
