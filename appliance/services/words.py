"""Events in words and in plain values: what people read and what `--json` prints."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from appliance.events.schema import ANOMALY, Alarm, Score, Stage, State

# "alarming" on a screen full of healthy machines would frighten whoever looks at it.
STAGES = {
    Stage.COLLECTING: "collecting",
    Stage.LEARNING: "learning",
    Stage.WARNING: "warns only",
    Stage.ALARMING: "on guard",
}
_JSON_INTEGER = 1 << 63


def alarm_text(alarm: Alarm) -> str:
    """One line about an alarm's present state."""
    who = f" by {printable(alarm.by)}" if alarm.by else ""
    cause = f", cause {printable(alarm.cause)}" if alarm.cause else ""
    scores = f", score {alarm.score:.3g} against {alarm.threshold:.3g}"
    if alarm.condition != ANOMALY:
        cause, scores = f", {printable(alarm.condition)}", f": {printable(alarm.message)}" if alarm.message else ""
    return f"{alarm.severity} {alarm.state}{who}{cause}{scores} (id {printable(alarm.id)})"


def cause_text(alarm: Alarm) -> str:
    """The channel, and what is wrong with it where that is no anomaly."""
    about = "" if alarm.condition == ANOMALY else alarm.condition
    return printable(" ".join(part for part in (about, alarm.cause) if part))


def alarm_summary(asset: str, alarm: Alarm) -> dict[str, Any]:
    """Plain values of an alarm; the names are stable."""
    return {
        "id": alarm.id,
        "asset": asset,
        "state": alarm.state.value,
        "severity": alarm.severity.value,
        "condition": alarm.condition,
        "active": alarm.active,
        "cause": alarm.cause,
        "score": alarm.score,
        "threshold": alarm.threshold,
        "raised": alarm.raised,
        "at": alarm.at,
        "by": alarm.by,
        "until": alarm.until,
        "branch": alarm.branch,
        "model": alarm.model,
        "version": alarm.version,
        "device": alarm.device,
        "message": alarm.message,
    }


def service_summary(state: State) -> dict[str, Any]:
    """Plain values of a service's state; the names are stable."""
    return {
        "online": state.online,
        "at": state.at,
        "version": state.version,
        "received": state.received,
        "processed": state.processed,
        "queued": state.queued,
        "dropped": dict(state.dropped),
        "balanced": balanced(state),
        "detail": plain(state.detail),
    }


def balanced(state: State) -> bool:
    """received = processed + queued + dropped, and nothing below zero."""
    parts = (state.processed, state.queued, *state.dropped.values())
    return state.received == sum(parts) and min(parts) >= 0


def summary_text(summary: dict[str, Any], connected: bool = True) -> str:
    """One line about a picture's summary."""
    stages = Counter(STAGES.get(asset["stage"], "not judged") for asset in summary["assets"].values())
    parts = [
        "" if connected else "no connection to the broker",
        f"{amount(round(summary['readings_per_s'], 1))} readings/s",
        f"{amount(round(summary['scores_per_s'], 1))} scores/s",
        f"assets {len(summary['assets'])}"
        + (f" ({', '.join(f'{count} {stage}' for stage, count in sorted(stages.items()))})" if stages else ""),
        f"alarms standing {len(summary['standing'])}",
        f"dropped {sum(summary['dropped'].values())}",
        "computed on " + printable("; ".join(summary["devices"])) if summary["devices"] else "",
    ]
    return ", ".join(part for part in parts if part)


def healthy_text(count: int, assets: Sequence[str]) -> str:
    """Asks whether what was learned was normal; empty where nothing is to be asked."""
    if not count or not assets:
        return ""
    first = printable(assets[0])
    which = first if count == 1 else f"{first} and {count - 1} more"
    return f"{which} learned; was it healthy then?  millwright alarms normal {first}"


def stage_text(before: Stage | None, score: Score) -> str:
    """A change of stage."""
    rows = f" ({score.rows} rows learned)" if score.rows else ""
    return f"{STAGES[before]} -> {STAGES[score.stage]}{rows}" if before else f"{STAGES[score.stage]}{rows}"


def drop_text(state: State, reason: str) -> str:
    """One line about a reason for which a service drops messages."""
    example = example_of(state, reason)
    such = f", such as: {example}" if example else ""
    return f"drops messages: {printable(reason)} ({state.dropped[reason]}){such}"


def counted(number: int, thing: str) -> str:
    """`1 message`, `2,000 messages`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def example_of(state: State, reason: str) -> str:
    """The newest message that a service dropped for a reason, as it told it."""
    examples = state.detail.get("examples")
    found = examples.get(reason) if isinstance(examples, dict) else None
    return printable(found[:200]) if isinstance(found, str) else ""


def printable(text: str) -> str:
    """Text from the bus, fit for a terminal: control characters could move its cursor and forge what is shown."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def plain(value: Any, depth: int = 4) -> Any:
    """A value from the bus as JSON can carry it: CBOR knows more types than that."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return value if -_JSON_INTEGER < value < _JSON_INTEGER else str(value)
    if depth and isinstance(value, dict):
        return {str(key): plain(inner, depth - 1) for key, inner in value.items()}
    if depth and isinstance(value, list | tuple):
        return [plain(inner, depth - 1) for inner in value]
    return str(value)[:200]


def clock(at: int) -> str:
    """A time of day, as the clock on the wall shows it."""
    return _local(at, "%H:%M:%S")


def moment(at: int) -> str:
    """Date, time of day and the distance to UTC."""
    return _local(at, "%Y-%m-%dT%H:%M:%S%z")


def span(seconds: float) -> str:
    """How long, in one unit or two: 5 s, 12 min, 3 h 20 min, 4 d."""
    whole = max(int(seconds), 0)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d"


def amount(value: float) -> str:
    """Four significant digits at most, without an exponent where one can do without."""
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-3 <= size < 1e7:
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:.0f}"
    text = f"{value:.4g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _local(at: int, form: str) -> str:
    try:
        return datetime.fromtimestamp(at / 1e9, UTC).astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):
        return "?"  # a time from the bus may be any number


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines; a column that is empty below its heading is left out."""
    filled = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    widths = {place: max(len(row[place]) for row in rows) for place in filled}
    return ["  ".join(row[place].ljust(widths[place]) for place in filled).rstrip() for row in rows]


def json_text(value: Any) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value)).decode()
