"""Home Assistant's discovery by device: what an asset looks like there. Pure: names and facts in, configurations out.

`homeassistant/device/<id>/config`, retained, one for each asset and one for the box. Identities never change with a
device's name, so that what people arrange there stays.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from appliance.config.schema import Settable
from appliance.protocols import units

MAX_POINTS = 64  # of an asset, as entities
_SENSOR = {"p": "sensor"}
_STAGES = ["collecting", "learning", "warning", "alarming"]
_STATES = ["normal", "unacknowledged", "acknowledged", "returned", "shelved"]

# Dimension of a unit -> device class, and the units that Home Assistant takes for it; empty: whatever we show.
_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "temperature": ("temperature", ("°C", "°F", "K")),
    "pressure": ("pressure", ("Pa", "hPa", "kPa", "bar", "mbar", "psi", "mmHg", "inHg")),
    "power": ("power", ("mW", "W", "kW", "MW")),
    "apparent power": ("apparent_power", ("VA",)),
    "reactive power": ("reactive_power", ("var",)),
    "energy": ("energy", ("Wh", "kWh", "MWh", "J", "kJ", "MJ", "GJ")),
    "current": ("current", ("mA", "A")),
    "voltage": ("voltage", ("µV", "mV", "V", "kV")),
    "frequency": ("frequency", ("Hz", "kHz", "MHz")),
    "illuminance": ("illuminance", ("lx",)),
    "irradiance": ("irradiance", ("W/m²",)),
    "length": ("distance", ("mm", "cm", "m", "km", "in", "ft")),
    "speed": ("speed", ("mm/s", "m/s", "km/h", "mph", "kn")),
    "volume": ("volume_storage", ("mL", "L", "m³", "gal")),
    "flow": ("volume_flow_rate", ("L/min", "L/h", "L/s", "m³/h", "m³/s")),
    "mass": ("weight", ("mg", "g", "kg", "lb")),
    "conductivity": ("conductivity", ("µS/cm", "mS/cm")),
    "acidity": ("ph", ()),
    "sound level": ("sound_pressure", ("dBA",)),
    "signal level": ("signal_strength", ("dBm",)),
    "time": ("duration", ("µs", "ms", "s", "min", "h", "d")),
    "information": ("data_size", ("B", "kB", "KiB", "MB", "GB")),
}
_RATIOS = {"humidity": "humidity", "battery": "battery", "moisture": "moisture", "power_factor": "power_factor"}


# Names that end in their unit, as ours do.
_ENDINGS = {
    "c": "Cel", "percent": "%", "pa": "Pa", "hpa": "hPa", "kpa": "kPa", "bar": "bar", "mbar": "mbar", "w": "W",
    "kw": "kW", "wh": "W.h", "kwh": "kW.h", "a": "A", "ma": "mA", "v": "V", "mv": "mV", "hz": "Hz", "rpm": "/min",
    "lx": "lx", "lpm": "L/min", "mm_s": "mm/s", "m_s": "m/s", "mm": "mm", "ms": "ms", "s": "s", "kg": "kg",
    "ppm": "[ppm]", "db": "dB",
}  # fmt: skip


def unit_in(name: str) -> str:
    """The UCUM code of the unit that a point's name ends in; empty where it says none, or a rate."""
    words = name.lower().split("_")
    if "per" in words or len(words) < 2:
        return ""
    return _ENDINGS.get("_".join(words[-2:])) or _ENDINGS.get(words[-1], "")


def slug(text: str) -> str:
    """Fit for an identity. Two names that look alike so are told apart by a digest."""
    plain = re.sub(r"[^a-z0-9_]+", "_", text.lower())[:80].strip("_")
    return plain if plain == text else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def identity(box: str, asset: str = "") -> str:
    return f"mw_{slug(box)}" + (f"-{slug(asset)}" if asset else "")


def topic(discovery: str, which: str) -> str:
    return f"{discovery}/device/{which}/config"


class Asset:
    """What is known of it: enough for its configuration. `settable`: the points that people there may set."""

    def __init__(self, path: str, settable: Sequence[Settable] = ()) -> None:
        self.path, self.settable = path, settable
        self.points: dict[str, None] = {}
        self.conditions: dict[str, None] = {}
        self.is_scored = False
        self.facts: dict[str, Any] = {}  # of the device behind it

    def meet(self, kind: str, condition: str, fields: dict[str, Any]) -> bool:
        """Take in an event; whether something is new that belongs to the configuration."""
        if kind == "reading":
            fresh = [name for name in fields["values"] if name not in self.points][: MAX_POINTS - len(self.points)]
            self.points |= dict.fromkeys(fresh)
            return bool(fresh)
        if kind == "score":
            fresh_score, self.is_scored = not self.is_scored, True
            return fresh_score
        if kind == "alarm":
            fresh_condition = condition not in self.conditions
            self.conditions[condition] = None
            return fresh_condition
        changed = any(
            self.facts.get(name) != fields.get(name) for name in ("name", "maker", "model", "version", "units")
        )
        self.facts = fields
        return changed


def configuration(box: str, asset: Asset, prefix: str, version: str) -> dict[str, Any]:
    """Of an asset."""
    which = identity(box, asset.path)
    facts = asset.facts
    device = {"ids": [which], "name": facts.get("name") or asset.path, "via_device": identity(box)}
    device |= {
        key: facts[name] for key, name in (("mf", "maker"), ("mdl", "model"), ("sw", "version")) if facts.get(name)
    }
    found = {f"point-{slug(name)}": _point(asset, name, prefix) for name in asset.points}
    found |= {f"set-{slug(one.point)}": _setting(asset, one, prefix) for one in asset.settable}
    if asset.is_scored:
        found |= _scores(f"{prefix}/score/{asset.path}")
    for condition in {"anomaly": None, **asset.conditions}:
        found |= _alarm(asset.path, condition, prefix)
    return _document(which, device, found, prefix, version)


def box_configuration(box: str, services: list[str], prefix: str, version: str) -> dict[str, Any]:
    """Of the box itself: each service, and what they dropped."""
    which = identity(box)
    found: dict[str, Any] = {}
    for name in services:
        state = f"{prefix}/state/{name}"
        found[f"service-{slug(name)}"] = {
            "p": "binary_sensor",
            "name": name,
            "dev_cla": "running",
            "ent_cat": "diagnostic",
            "stat_t": state,
            "val_tpl": "{{ 'ON' if value_json.online else 'OFF' }}",
        }
        found[f"queued-{slug(name)}"] = {
            **_SENSOR,
            "name": f"{name} queued",
            "ent_cat": "diagnostic",
            "stat_cla": "measurement",
            "stat_t": state,
            "val_tpl": "{{ value_json.queued }}",
        }
    device = {"ids": [which], "name": box, "mf": "Millwright", "sw": version}
    return _document(which, device, found, prefix, version)


def _document(
    which: str, device: dict[str, Any], components: dict[str, Any], prefix: str, version: str
) -> dict[str, Any]:
    for key, component in components.items():
        component["uniq_id"] = f"{which}-{key}"
    return {
        "dev": device,
        "o": {"name": "Millwright", "sw": version},
        "avty_t": f"{prefix}/availability",
        "qos": 1,
        "cmps": components,
    }


def _point(asset: Asset, name: str, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_SENSOR,
        "name": name,
        "stat_t": f"{prefix}/reading/{asset.path}",
        "stat_cla": "measurement",
    }
    found["val_tpl"] = f"{{{{ {_value(name)} }}}}"
    return found | _unit(asset, name)


def _setting(asset: Asset, one: Settable, prefix: str) -> dict[str, Any]:
    """A switch or a number. What it stands at is what the device says."""
    order, value = json.dumps({"asset": asset.path, "point": one.point})[:-1], _value(one.point)
    found = {"name": f"Set {one.point}", "cmd_t": f"{prefix}/ask/set", "stat_t": f"{prefix}/reading/{asset.path}"}
    if one.type == "switch":
        said = "'None' if " + value + " is none else 'ON' if " + value + " else 'OFF'"
        return found | {
            "p": "switch",
            "pl_on": f'{order}, "value": true}}',
            "pl_off": f'{order}, "value": false}}',
            "stat_on": "ON",
            "stat_off": "OFF",
            "val_tpl": f"{{{{ {said} }}}}",
        }
    unit = {key: value for key, value in _unit(asset, one.point).items() if key != "stat_cla"}
    return (
        found
        | unit
        | {
            "p": "number",
            "cmd_tpl": f'{{{{ {_quoted(order)} }}}}, "value": {{{{ value }}}}}}',
            "val_tpl": f"{{{{ {value} }}}}",
            "min": one.min,
            "max": one.max,
            "step": max(0.001, 10.0 ** math.floor(math.log10((one.max - one.min) / 1000))),
            "mode": "box",
        }
    )


def _value(name: str) -> str:
    return f"value_json['values'].get({_quoted(name)})"


def _unit(asset: Asset, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    told = asset.facts.get("units", {})
    code = told[name] if name in told else unit_in(name)
    if code:
        shown = units.shown(code)
        found["unit_of_meas"] = shown
        found |= _class_of(name, code, shown)
    return found


def _class_of(name: str, code: str, shown: str) -> dict[str, str]:
    dimension = units.dimension(code)
    if dimension == "ratio" and shown == "%":
        known = next((kind for word, kind in _RATIOS.items() if word in name.lower()), "")
        return {"dev_cla": known} if known else {}
    device_class, taken = _CLASSES.get(dimension, ("", ()))
    if not device_class or (taken and shown not in taken):
        return {}
    # Energy that only grows is what its dashboard counts; Home Assistant refuses "measurement" for it.
    return {"dev_cla": device_class, **({"stat_cla": "total_increasing"} if device_class == "energy" else {})}


def _scores(state: str) -> dict[str, Any]:
    common = {**_SENSOR, "stat_t": state}
    diagnostic = {**common, "ent_cat": "diagnostic"}
    return {
        "score": {**common, "name": "Score", "stat_cla": "measurement", "val_tpl": "{{ value_json.score }}"},
        "limit": {**diagnostic, "name": "Limit", "stat_cla": "measurement", "val_tpl": "{{ value_json.threshold }}"},
        "stage": {
            **diagnostic,
            "name": "Stage",
            "dev_cla": "enum",
            "ops": _STAGES,
            "val_tpl": "{{ value_json.stage }}",
        },
        "cause": {**common, "name": "Cause", "val_tpl": "{{ value_json.cause }}"},
        "model": {**diagnostic, "name": "Model", "val_tpl": "{{ value_json.model }} {{ value_json.version }}"},
        "computed": {**diagnostic, "name": "Computed on", "val_tpl": "{{ value_json.device }}"},
    }


def _alarm(path: str, condition: str, prefix: str) -> dict[str, Any]:
    is_plain = condition == "anomaly"
    state = f"{prefix}/alarm/{path}" + ("" if is_plain else f"/~{condition}")
    key, name = ("alarm", "Alarm") if is_plain else (f"alarm-{condition}", f"Alarm {condition}")
    return {
        key: {
            "p": "binary_sensor",
            "name": name,
            "dev_cla": "problem",
            "stat_t": state,
            "val_tpl": "{{ 'OFF' if value_json.state in ('normal', 'returned') else 'ON' }}",
            "json_attr_t": state,
        },
        f"{key}-state": {
            **_SENSOR,
            "name": f"{name} state",
            "dev_cla": "enum",
            "ops": _STATES,
            "stat_t": state,
            "val_tpl": "{{ value_json.state }}",
        },
        f"{key}-ack": {
            "p": "button",
            "name": f"Acknowledge {name.lower()}",
            "cmd_t": f"{prefix}/ask/ack",
            "pl_prs": json.dumps({"asset": path, "condition": condition}),
        },
    }


def _quoted(name: str) -> str:
    """As a string of a template, whatever stands in it."""
    return json.dumps(name).replace("{", "\\u007b").replace("}", "\\u007d").replace("%", "\\u0025")
