"""How many parts may change, and whether the rest is enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BindingError
from appliance.vault import enrolment
from appliance.vault.enrolment import plan, require
from hardware.identity import Fact

UUID = Fact("system-uuid", "6f1c2b0e-9a47-4d3e-8c55-0b72e1f4a9d3")
PARTS = [
    UUID,
    Fact("serial", "7C5RM12"),
    Fact("cpu-serial", "0x2b3f1c90d47ae586"),
    Fact("soc-serial", "90d3ab17e4c2"),
    Fact("nic", "b0:7b:25:c1:0e:54", "eno1"),
    Fact("memory", "3825F0C1", "A1"),
    Fact("disk", "PHYF204300AB960CGN", "sda"),
]


@pytest.mark.parametrize(("count", "spare"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)])
def test_two_of_seven_may_be_replaced_and_fewer_of_fewer(count: int, spare: int) -> None:
    made = plan(PARTS[:count], uefi=True, hypervisor="", minimum_bits=40)
    assert (made.needed, len(made.factors)) == (count - spare, count)


@given(
    st.lists(st.sampled_from(PARTS), unique=True),
    st.booleans(),
    st.sampled_from(["", "QEMU"]),
    st.integers(16, 256),
)
def test_what_is_tolerated_never_leaves_a_thief_too_little(
    facts: list[Fact], uefi: bool, hypervisor: str, minimum_bits: int
) -> None:
    report = plan(facts, uefi, hypervisor, minimum_bits).report
    assert 0 <= report.of - report.needed <= 2
    assert report.stolen_bits <= report.copied_bits
    assert report.sufficient == (report.stolen_bits >= minimum_bits)
    if not report.sufficient:
        assert report.needed == report.of  # even with all of them
        with pytest.raises(BindingError, match=f"{minimum_bits} are the least"):
            require(report)
    else:
        require(report)


def test_a_disk_is_worth_nothing_to_who_has_it() -> None:
    report = plan([UUID, PARTS[-1]], uefi=False, hypervisor="", minimum_bits=40).report
    assert (report.stolen_bits, report.copied_bits) == (64, 96)


def test_the_variables_of_a_guest_are_worth_nothing() -> None:
    assert plan([UUID], uefi=True, hypervisor="QEMU", minimum_bits=40).report.stolen_bits == 64
    assert plan([UUID], uefi=True, hypervisor="", minimum_bits=40).report.stolen_bits == 256 + 64


def test_the_table_says_why_of_each_part_and_shows_no_value() -> None:
    junk = [
        Fact("serial", "Default string"),
        Fact("cpu-model", "Intel(R) N100"),
        Fact("nic", "02:42:ac:11:00:02", "eth0"),
    ]
    report = plan([UUID, *junk], uefi=False, hypervisor="", minimum_bits=40).report
    assert report.table() == [
        ("the host secret", "0", "always wanted; on the disk, so a thief of the disk has it"),
        ("the secret in the UEFI variables", "0", "this box has no UEFI, or it is not to be used"),
        ("the system's UUID", "64", "this box's own"),
        ("the serial number in the firmware", "0", "filler that the maker left in"),
        ("network port eth0", "0", "made up by software (locally administered)"),
        ("the processor's model (Intel(R) N100)", "0", "every box of this model has the same"),
    ]
    assert UUID.value not in str(report)


def test_little_is_warned_of() -> None:
    assert plan(PARTS, uefi=True, hypervisor="", minimum_bits=40).report.warnings == ()
    told = plan([UUID], uefi=False, hypervisor="QEMU", minimum_bits=40).report.warnings
    assert any("2^64 guesses" in warning for warning in told)
    assert any("no part may be replaced" in warning for warning in told)
    assert any("a guest of QEMU" in warning for warning in told)
    assert enrolment.COMFORT_BITS > 64
