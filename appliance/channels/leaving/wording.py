"""What people are told of an alarm, in a few lines. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

MAX_LINES = 10  # alarms told one by one in a message


class Notice(NamedTuple):
    title: str
    body: str
    is_bad: bool  # a failure, not the end of one


_WORDS = {
    "unacknowledged": "stands",
    "acknowledged": "was seen",
    "returned": "is over, nobody has seen it",
    "shelved": "is shelved",
    "normal": "is over",
}


def notice(box: str, told: Sequence[tuple[str, dict[str, Any]]]) -> Notice:
    """Of one alarm or several: the asset's path, with a condition behind it, and the alarm's fields."""
    lines = [_line(path, fields) for path, fields in told[:MAX_LINES]]
    if len(told) > MAX_LINES:
        lines.append(f"and {len(told) - MAX_LINES} more")
    is_bad = any(fields.get("state") == "unacknowledged" for _, fields in told)
    if len(told) > 1:
        return Notice(f"{box}: {len(told)} alarms", "\n".join(lines), is_bad)
    path, fields = told[0]
    return Notice(f"{box}: {_name(path)} {_what(path, fields)}", _lengthy(fields), is_bad)


def _line(path: str, fields: dict[str, Any]) -> str:
    return f"{_moment(fields)} {_name(path)}: {_what(path, fields)}"


def _what(path: str, fields: dict[str, Any]) -> str:
    condition = path.partition("/~")[2]
    about = condition or fields.get("cause") or "anomaly"
    return f"{fields.get('severity', 'alarm')} ({about}) {_WORDS.get(str(fields.get('state')), '')}".strip()


def _lengthy(fields: dict[str, Any]) -> str:
    parts = [f"Since {_moment(fields, 'raised')} UTC."]
    if fields.get("score"):
        parts.append(f"Score {fields['score']:.3g}, limit {fields.get('threshold', 0):.3g}.")
    parts += [f"{fields['message']}"] if fields.get("message") else []
    parts += [f"By {fields['by']}."] if fields.get("by") else []
    return " ".join(parts)


def _moment(fields: dict[str, Any], which: str = "at") -> str:
    return datetime.fromtimestamp(int(fields.get(which, 0)) / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _name(path: str) -> str:
    return path.partition("/~")[0]
