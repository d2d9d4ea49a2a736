"""Which device computes, and when one that failed is tried again."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inference.policy import CPU, Figures, Quarantine, Terms, Wish, wishes


@dataclass(frozen=True)
class Fact:
    device: str
    reason: str = ""
    present: bool = True
    name: str = ""
    driver: str = ""
    firmware: str = ""
    node: str = ""
    remedy: str = ""


BOX = (Fact("CPU"), Fact("GPU.0"), Fact("GPU.1", "no permission"), Fact("NPU", "there is none", present=False))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("auto",), [Wish("GPU.0", "", False), Wish("GPU.1", "no permission", False), Wish("CPU", "", False)]),
        (("CPU",), [Wish("CPU", "", True)]),
        (
            ("GPU",),
            [Wish("GPU.0", "", True), Wish("GPU.1", "no permission", True), Wish("CPU", "", False)],
        ),
        (("NPU",), [Wish("NPU", "there is none", True), Wish("CPU", "", False)]),
        (("CPU", "GPU.0"), [Wish("CPU", "", True), Wish("GPU.0", "", True)]),
        (("GPU.1", "NPU", "GPU.1"), [Wish("GPU.1", "no permission", True), Wish("NPU", "there is none", True),
                                     Wish("CPU", "", False)]),
        (("GPU.3",), [Wish("GPU.3", "", True), Wish("CPU", "", False)]),
    ],
)  # fmt: skip
def test_what_may_be_used_and_in_which_order(devices: tuple[str, ...], expected: list[Wish]) -> None:
    assert wishes(devices, BOX) == expected


def test_where_nothing_is_known_there_is_a_cpu() -> None:
    assert wishes(("auto",), ()) == [Wish(CPU, "", False)]
    assert wishes(("auto",), [Fact("CPU", "OpenVINO was not asked")]) == [Wish(CPU, "", False)]


def test_figures_decide_only_where_nobody_else_did() -> None:
    assert Terms().measures
    assert Terms(policy="throughput").measures
    assert not Terms(policy="low-power").measures
    assert not Terms(devices=("NPU", "CPU")).measures


def test_each_policy_looks_at_its_own_figure() -> None:
    quick, strong = Figures(0.001, 1000.0), Figures(0.002, 5000.0)
    assert quick.merit("latency") < strong.merit("latency")
    assert strong.merit("throughput") < quick.merit("throughput")


def test_each_policy_compiles_in_its_own_way() -> None:
    assert Terms().plan(eager=False).streams == 1
    assert Terms(policy="throughput").plan(eager=True).streams == 0
    assert Terms(policy="low-power").plan(eager=False).threads == 1


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30), st.floats(0.1, 60.0))
def test_a_device_that_keeps_failing_is_tried_ever_more_rarely_but_never_given_up(
    late: list[float], first_s: float
) -> None:
    quarantine, now, pauses = Quarantine(first_s, 16 * first_s), 1000.0, []
    for late_s in late:
        quarantine.fail(now)
        pauses.append(quarantine.until - now)
        now = quarantine.until + min(late_s, first_s / 2)
    expected = [min(first_s * 2**turn, 16 * first_s) for turn in range(len(pauses))]
    assert pauses == pytest.approx(expected)


def test_a_device_that_worked_for_long_is_forgiven() -> None:
    quarantine = Quarantine(10.0, 1000.0)
    quarantine.fail(0.0)
    quarantine.fail(10.0)
    assert quarantine.until == 30.0
    quarantine.work(30.0)
    quarantine.fail(40.0)  # after less than its last pause
    assert quarantine.until == 80.0
    quarantine.work(80.0)
    quarantine.fail(200.0)
    assert quarantine.until == 210.0
