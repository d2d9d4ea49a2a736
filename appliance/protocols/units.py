"""Units: as devices write them -> UCUM, and from one unit to another of the same dimension. Pure.

find("°C").code == "Cel"        find("kWh").code == "kW.h"        find("furlong") is None
code("furlong") == "{furlong}"  what UCUM calls an annotation: kept, and converted to nothing
convert(68.0, "[degF]", "Cel") == 20.0
shown("Cel") == "°C"            as people, Home Assistant and screens write it
"""

import re
from typing import NamedTuple


class Unit(NamedTuple):
    code: str  # UCUM, case sensitive
    dimension: str
    factor: float = 1.0  # of one unit in the dimension's own: value * factor + offset
    offset: float = 0.0
    shown: str = ""  # empty: the code itself
    spoken: tuple[str, ...] = ()  # other spellings; case is tried as written, then without


_UNITS = (
    Unit("Cel", "temperature", 1.0, 0.0, "°C", ("C", "deg C", "degC", "celsius", "℃", "degrees celsius")),
    Unit("[degF]", "temperature", 5 / 9, -160 / 9, "°F", ("F", "deg F", "degF", "fahrenheit", "℉")),
    Unit("K", "temperature", 1.0, -273.15, "K", ("kelvin",)),
    Unit("%", "ratio", 0.01, 0.0, "%", ("percent", "pct", "%RH", "%rh", "% RH")),
    Unit("[ppm]", "ratio", 1e-6, 0.0, "ppm", ("parts per million",)),
    Unit("[ppb]", "ratio", 1e-9, 0.0, "ppb", ("parts per billion",)),
    Unit("Pa", "pressure", 1.0, 0.0, "Pa", ("pascal",)),
    Unit("hPa", "pressure", 100.0, 0.0, "hPa"),
    Unit("kPa", "pressure", 1e3, 0.0, "kPa"),
    Unit("MPa", "pressure", 1e6, 0.0, "MPa"),
    Unit("bar", "pressure", 1e5, 0.0, "bar"),
    Unit("mbar", "pressure", 100.0, 0.0, "mbar"),
    Unit("[psi]", "pressure", 6894.757293168, 0.0, "psi"),
    Unit("mm[Hg]", "pressure", 133.322387415, 0.0, "mmHg"),
    Unit("[in_i'Hg]", "pressure", 3386.389, 0.0, "inHg"),
    Unit("mW", "power", 1e-3, 0.0, "mW"),
    Unit("W", "power", 1.0, 0.0, "W", ("watt", "watts")),
    Unit("kW", "power", 1e3, 0.0, "kW"),
    Unit("MW", "power", 1e6, 0.0, "MW"),
    Unit("V.A", "apparent power", 1.0, 0.0, "VA"),
    Unit("kV.A", "apparent power", 1e3, 0.0, "kVA"),
    Unit("V.A{reactive}", "reactive power", 1.0, 0.0, "var", ("VAr", "VAR")),
    Unit("kV.A{reactive}", "reactive power", 1e3, 0.0, "kvar", ("kVAr", "kVAR")),
    Unit("W.h", "energy", 3600.0, 0.0, "Wh"),
    Unit("kW.h", "energy", 3.6e6, 0.0, "kWh"),
    Unit("MW.h", "energy", 3.6e9, 0.0, "MWh"),
    Unit("W.min", "energy", 60.0, 0.0, "Wmin", ("W-min", "Watt-minute")),
    Unit("J", "energy", 1.0, 0.0, "J", ("joule",)),
    Unit("kJ", "energy", 1e3, 0.0, "kJ"),
    Unit("MJ", "energy", 1e6, 0.0, "MJ"),
    Unit("GJ", "energy", 1e9, 0.0, "GJ"),
    Unit("V.A.h{reactive}", "reactive energy", 1.0, 0.0, "varh", ("VArh",)),
    Unit("kV.A.h{reactive}", "reactive energy", 1e3, 0.0, "kvarh", ("kVArh",)),
    Unit("uA", "current", 1e-6, 0.0, "µA", ("μA",)),
    Unit("mA", "current", 1e-3, 0.0, "mA"),
    Unit("A", "current", 1.0, 0.0, "A", ("amp", "amps", "ampere")),
    Unit("uV", "voltage", 1e-6, 0.0, "µV", ("μV",)),
    Unit("mV", "voltage", 1e-3, 0.0, "mV"),
    Unit("V", "voltage", 1.0, 0.0, "V", ("volt", "volts")),
    Unit("kV", "voltage", 1e3, 0.0, "kV"),
    Unit("Ohm", "resistance", 1.0, 0.0, "Ω", ("ohm", "Ω")),
    Unit("kOhm", "resistance", 1e3, 0.0, "kΩ", ("kΩ",)),
    Unit("A.h", "charge", 3600.0, 0.0, "Ah"),
    Unit("mA.h", "charge", 3.6, 0.0, "mAh"),
    Unit("Hz", "frequency", 1.0, 0.0, "Hz", ("hertz",)),
    Unit("kHz", "frequency", 1e3, 0.0, "kHz"),
    Unit("MHz", "frequency", 1e6, 0.0, "MHz"),
    Unit("/min", "rotation", 1 / 60, 0.0, "rpm", ("RPM", "r/min", "U/min", "1/min", "rev/min")),
    Unit("lx", "illuminance", 1.0, 0.0, "lx", ("lux",)),
    Unit("lm", "luminous flux", 1.0, 0.0, "lm", ("lumen",)),
    Unit("W/m2", "irradiance", 1.0, 0.0, "W/m²", ("W/m^2",)),
    Unit("um", "length", 1e-6, 0.0, "µm", ("μm",)),
    Unit("mm", "length", 1e-3, 0.0, "mm"),
    Unit("cm", "length", 1e-2, 0.0, "cm"),
    Unit("m", "length", 1.0, 0.0, "m", ("metre", "meter")),
    Unit("km", "length", 1e3, 0.0, "km"),
    Unit("[in_i]", "length", 0.0254, 0.0, "in", ("inch",)),
    Unit("[ft_i]", "length", 0.3048, 0.0, "ft", ("feet",)),
    Unit("mm/s", "speed", 1e-3, 0.0, "mm/s"),
    Unit("m/s", "speed", 1.0, 0.0, "m/s"),
    Unit("km/h", "speed", 1 / 3.6, 0.0, "km/h", ("kmh", "kph")),
    Unit("[mi_i]/h", "speed", 0.44704, 0.0, "mph"),
    Unit("[kn_i]", "speed", 1852 / 3600, 0.0, "kn", ("knots", "kt")),
    Unit("m/s2", "acceleration", 1.0, 0.0, "m/s²", ("m/s^2",)),
    Unit("[g]", "acceleration", 9.80665, 0.0, "g₀", ("g0", "gn")),
    Unit("m[g]", "acceleration", 0.00980665, 0.0, "mg₀"),
    Unit("mL", "volume", 1e-6, 0.0, "mL", ("ml",)),
    Unit("L", "volume", 1e-3, 0.0, "L", ("l", "litre", "liter")),
    Unit("m3", "volume", 1.0, 0.0, "m³", ("m^3", "cbm")),
    Unit("[gal_us]", "volume", 0.003785411784, 0.0, "gal"),
    Unit("L/min", "flow", 1e-3 / 60, 0.0, "L/min", ("l/min", "lpm")),
    Unit("L/h", "flow", 1e-3 / 3600, 0.0, "L/h", ("l/h",)),
    Unit("L/s", "flow", 1e-3, 0.0, "L/s", ("l/s",)),
    Unit("m3/h", "flow", 1 / 3600, 0.0, "m³/h", ("m^3/h",)),
    Unit("m3/s", "flow", 1.0, 0.0, "m³/s"),
    Unit("mg", "mass", 1e-6, 0.0, "mg"),
    Unit("g", "mass", 1e-3, 0.0, "g", ("gram",)),
    Unit("kg", "mass", 1.0, 0.0, "kg"),
    Unit("t", "mass", 1e3, 0.0, "t"),
    Unit("[lb_av]", "mass", 0.45359237, 0.0, "lb", ("lbs",)),
    Unit("ug/m3", "concentration", 1e-9, 0.0, "µg/m³", ("μg/m³", "ug/m³", "µg/m3", "μg/m3")),
    Unit("mg/m3", "concentration", 1e-6, 0.0, "mg/m³"),
    Unit("g/m3", "concentration", 1e-3, 0.0, "g/m³"),
    Unit("uS/cm", "conductivity", 1e-4, 0.0, "µS/cm", ("μS/cm",)),
    Unit("mS/cm", "conductivity", 1e-1, 0.0, "mS/cm"),
    Unit("[pH]", "acidity", 1.0, 0.0, "pH"),
    Unit("N", "force", 1.0, 0.0, "N"),
    Unit("kN", "force", 1e3, 0.0, "kN"),
    Unit("N.m", "torque", 1.0, 0.0, "N·m", ("Nm", "N*m")),
    Unit("dB", "level", 1.0, 0.0, "dB"),
    Unit("dB{A}", "sound level", 1.0, 0.0, "dBA", ("dB(A)",)),
    Unit("dB{mW}", "signal level", 1.0, 0.0, "dBm"),
    Unit("us", "time", 1e-6, 0.0, "µs", ("μs",)),
    Unit("ms", "time", 1e-3, 0.0, "ms"),
    Unit("s", "time", 1.0, 0.0, "s", ("sec", "seconds", "second")),
    Unit("min", "time", 60.0, 0.0, "min", ("minutes", "minute")),
    Unit("h", "time", 3600.0, 0.0, "h", ("hr", "hours", "hour")),
    Unit("d", "time", 86_400.0, 0.0, "d", ("days", "day")),
    Unit("deg", "angle", 1.0, 0.0, "°", ("degrees", "degree")),
    Unit("By", "information", 1.0, 0.0, "B", ("bytes", "byte")),
    Unit("kBy", "information", 1e3, 0.0, "kB"),
    Unit("KiBy", "information", 1024.0, 0.0, "KiB"),
    Unit("MBy", "information", 1e6, 0.0, "MB"),
    Unit("GBy", "information", 1e9, 0.0, "GB"),
    Unit("[mired]", "colour temperature", 1.0, 0.0, "mired", ("mireds",)),
    Unit("[arb'U]", "arbitrary", 1.0, 0.0, "lqi"),
)

MAX_TEXT = 24  # characters of a unit that nobody knows

_BY_CODE = {unit.code: unit for unit in _UNITS}
_EXACT = {text: unit for unit in _UNITS for text in (unit.code, unit.shown, *unit.spoken) if text}
_FOLDED: dict[str, Unit | None] = {}
for _text, _unit in _EXACT.items():  # mW and MW are not one unit: what case alone tells apart is not guessed
    _key = _text.casefold()
    _FOLDED[_key] = _unit if _FOLDED.get(_key, _unit) is _unit else None
_ANNOTATION = re.compile(r"[^!-z|~]|[{}\[\]]")


def find(text: str) -> Unit | None:
    """The unit that a device means, in any of its spellings."""
    text = text.strip()
    return _EXACT.get(text) or _FOLDED.get(text.casefold())


def code(text: str) -> str:
    """UCUM's code; of a unit that UCUM does not know, an annotation such as `{steps}`; of nothing, nothing."""
    unit = find(text)
    if unit is not None:
        return unit.code
    plain = _ANNOTATION.sub("", text.strip())[:MAX_TEXT]
    return f"{{{plain}}}" if plain else ""


def convert(value: float, source: str, target: str) -> float | None:
    """Between two codes of one dimension; None where there is no way."""
    if source == target:
        return value
    old, new = _BY_CODE.get(source), _BY_CODE.get(target)
    if old is None or new is None or old.dimension != new.dimension:
        return None
    return (value * old.factor + old.offset - new.offset) / new.factor


def dimension(text: str) -> str:
    """What a unit's code measures; empty where that is not known."""
    unit = _BY_CODE.get(text)
    return unit.dimension if unit else ""


def shown(text: str) -> str:
    """A code as people write it."""
    unit = _BY_CODE.get(text)
    if unit is not None:
        return unit.shown or unit.code
    return text[1:-1] if text.startswith("{") and text.endswith("}") else text
