"""The picture of the bus in Prometheus's text format (version 0.0.4). Pure.

Names of assets and points are masked like all that leaves; numbers are as the bus told them.
"""

import math
from collections.abc import Iterable, Iterator

from appliance.events.schema import Kind, State
from appliance.masking.masker import Masker
from appliance.services.picture import Asset, Picture

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_NAMES = 20_000  # that were masked and are remembered

Labels = dict[str, str]
Sample = tuple[Labels, float]


class Exposition:
    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._masked: dict[str, str] = {}

    def text(self, picture: Picture, now: int) -> str:
        lines: list[str] = []
        for name, kind, meaning, samples in self._families(picture, now):
            told = [self._line(name, labels, value) for labels, value in samples]
            if told:
                lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *told]
        return "\n".join([*lines, ""])

    def _families(self, picture: Picture, now: int) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
        services = sorted(picture.services.items())
        assets = sorted(picture.assets.items())
        scored = [(path, asset) for path, asset in assets if asset.score is not None]
        yield "millwright_service_up", "gauge", "1 while the service runs.", _of(services, lambda one: one.online)
        yield "millwright_received_total", "counter", "Messages received.", _of(services, lambda one: one.received)
        yield "millwright_processed_total", "counter", "Messages dealt with.", _of(services, lambda one: one.processed)
        yield "millwright_queued", "gauge", "Messages that wait.", _of(services, lambda one: one.queued)
        yield "millwright_dropped_total", "counter", "Messages dropped, by reason.", _dropped(services)
        yield (
            "millwright_events_total",
            "counter",
            "Events seen on the bus.",
            [({"kind": kind.value}, picture.counts[kind]) for kind in (Kind.READING, Kind.BLOCK, Kind.SCORE)],
        )
        yield "millwright_reading", "gauge", "The last value of a point.", _values(assets)
        yield (
            "millwright_reading_age_seconds",
            "gauge",
            "Since an asset's last message.",
            [({"asset": path}, asset.age_s(now)) for path, asset in assets],
        )
        yield (
            "millwright_score",
            "gauge",
            "The last score.",
            [({"asset": path}, asset.score.score) for path, asset in scored if asset.score],
        )
        yield (
            "millwright_score_limit",
            "gauge",
            "What a score is held against.",
            [({"asset": path}, asset.score.threshold) for path, asset in scored if asset.score],
        )
        yield (
            "millwright_alarm",
            "gauge",
            "1 for each alarm that stands.",
            [
                (
                    {
                        "asset": path,
                        "condition": alarm.condition,
                        "severity": alarm.severity.value,
                        "state": alarm.state.value,
                    },
                    1.0,
                )
                for path, alarm in picture.standing()
            ],
        )
        yield from _forwarding(picture.services.get("forward"))

    def _line(self, name: str, labels: Labels, value: float) -> str:
        inner = ",".join(f'{key}="{_escaped(self._mask(text))}"' for key, text in labels.items())
        return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"

    def _mask(self, text: str) -> str:
        known = self._masked.get(text)
        if known is None:
            if len(self._masked) >= MAX_NAMES:
                self._masked.clear()
            known = self._masked[text] = self._masker.text(text)
        return known


def _of(services: list[tuple[str, State]], value: object) -> list[Sample]:
    assert callable(value)
    return [({"service": name}, float(value(state))) for name, state in services]


def _dropped(services: list[tuple[str, State]]) -> list[Sample]:
    return [
        ({"service": name, "reason": reason}, float(count))
        for name, state in services
        for reason, count in sorted(state.dropped.items())
    ]


def _values(assets: list[tuple[str, Asset]]) -> list[Sample]:
    return [({"asset": path, "point": point}, value) for path, asset in assets for point, value in asset.values.items()]


def _forwarding(state: State | None) -> Iterator[tuple[str, str, str, list[Sample]]]:
    """Of each destination. What a service says of itself is taken as far as it is of the right form."""
    told = state.detail.get("destinations") if state is not None else None
    found = {name: one for name, one in told.items() if isinstance(one, dict)} if isinstance(told, dict) else {}
    lines = [({"destination": name}, float(one.get("line") == "open")) for name, one in found.items()]
    sent = [({"destination": name}, _plain(one.get("sent"))) for name, one in found.items()]
    queued = [
        ({"destination": name, "lane": lane}, _plain(count))
        for name, one in found.items()
        for lane, count in _counts(one.get("queued"))
    ]
    dropped = [
        ({"destination": name, "reason": reason}, _plain(count))
        for name, one in found.items()
        for reason, count in _counts(one.get("dropped"))
    ]
    yield "millwright_forward_line_open", "gauge", "1 while the line to a destination is open.", lines
    yield "millwright_forward_sent_total", "counter", "Events that a destination has.", sent
    yield "millwright_forward_queued", "gauge", "Events that wait for a line.", queued
    yield "millwright_forward_dropped_total", "counter", "Events that gave way, by reason.", dropped


def _counts(value: object) -> list[tuple[str, object]]:
    return sorted(value.items()) if isinstance(value, dict) else []


def _plain(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
