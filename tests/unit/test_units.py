"""Units as devices write them, in UCUM, and between units of one dimension."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.protocols import units

CODES = [unit.code for unit in units._UNITS]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("°C", "Cel"),
        ("C", "Cel"),
        ("°F", "[degF]"),
        ("kWh", "kW.h"),
        ("kwh", "kW.h"),
        ("mW", "mW"),
        ("MW", "MW"),
        ("µg/m³", "ug/m3"),
        ("m³/h", "m3/h"),
        ("lqi", "[arb'U]"),
        ("RPM", "/min"),
        ("", ""),
        ("steps", "{steps}"),
        ("a{b} c", "{abc}"),
    ],
)
def test_spellings(text: str, code: str) -> None:
    assert units.code(text) == code


def test_no_spelling_stands_for_two_units() -> None:
    spellings = [text for unit in units._UNITS for text in {unit.code, unit.shown, *unit.spoken} if text]
    assert sorted({text for text in spellings if spellings.count(text) > 1}) == []


def test_what_case_alone_tells_apart_is_not_guessed() -> None:
    assert units.find("mW") is not units.find("MW")
    assert units.find("Mw") is None


def test_conversions() -> None:
    assert units.convert(68.0, "[degF]", "Cel") == pytest.approx(20.0)
    assert units.convert(300.0, "K", "Cel") == pytest.approx(26.85)
    assert units.convert(1.5, "kW", "W") == pytest.approx(1500)
    assert units.convert(60, "W.min", "W.h") == pytest.approx(1.0)
    assert units.convert(1.0, "kW", "Cel") is None
    assert units.convert(1.0, "{steps}", "W") is None
    assert units.convert(1.0, "{steps}", "{steps}") == 1.0


@given(st.sampled_from(CODES), st.sampled_from(CODES), st.floats(-1e6, 1e6))
def test_there_and_back_again(source: str, target: str, value: float) -> None:
    there = units.convert(value, source, target)
    if units.dimension(source) != units.dimension(target):
        assert there is None
    else:
        assert there is not None
        assert units.convert(there, target, source) == pytest.approx(value, rel=1e-6, abs=1e-6)


@given(st.text(max_size=60))
def test_any_text_gives_a_code_that_can_be_kept(text: str) -> None:
    code = units.code(text)
    assert code in CODES or code == "" or re.fullmatch(r"\{[!-z|~]{1,24}\}", code)
    assert units.shown(code) is not None


@pytest.mark.parametrize("code", CODES)
def test_what_is_shown_is_understood(code: str) -> None:
    found = units.find(units.shown(code))
    assert found is not None
    assert found.code == code
