"""The live view as a person sees it: a picture of the bus, drawn for a terminal of any size.

Drawing is pure: a picture, a time and a size go in, something that rich can print comes out. What matters most stands
on top and is the last to go when the terminal is small: the verdict, the standing alarms, the worst assets. Colour
only repeats what a word says already, and is spent on what wants attention: a quiet plant is a quiet screen.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from appliance.events.schema import ANOMALY, Alarm, AlarmState, Kind, Severity, Stage, State
from appliance.inference.detector.settings import DetectorSettings
from appliance.services.picture import SECOND, Asset, Picture
from appliance.services.words import (
    STAGES,
    amount,
    balanced,
    cause_text,
    clock,
    counted,
    example_of,
    healthy_text,
    printable,
    span,
)

FULL_ROWS = DetectorSettings().learn_rows  # that a detector wants to have seen before it may call somebody
STALE_S = 30.0  # an asset silent for longer is shown as such

_T = TypeVar("_T")
_TRY = """mosquitto_pub -t mw/v1/reading/line1/pump -m '{"temperature": 61}'"""
_BAR_LIMIT = 1.5  # thresholds that a full bar stands for


class Frame(NamedTuple):
    """Where and when a picture is drawn."""

    width: int
    height: int
    now: int  # UTC ns
    box: str  # the name of the machine
    connected: bool = True


class Shares(NamedTuple):
    """Rows of each section, headings not counted; 0 leaves it out."""

    alarms: int
    assets: int
    services: int
    drops: int


def draw(picture: Picture, frame: Frame) -> Group:
    """At most the lines that fit the frame."""
    shares = share_out(picture, frame.height)
    lines = [_header(picture, frame), _verdict(picture, frame), _figures(picture, frame)]
    lines += _alarms(picture, shares.alarms, frame)
    lines += _assets(picture, shares.assets, frame)
    lines += _services(picture, shares.services)
    lines += _drops(picture, shares.drops)
    if asked := healthy_text(*picture.unconfirmed()):
        lines.append(Text(f" {asked}", "dim"))
    for line in lines:
        line.truncate(frame.width, overflow="ellipsis")
    return Group(*lines[: frame.height])


def share_out(picture: Picture, height: int) -> Shares:
    """Divide the lines: alarms first, but three assets at least, then services, then the rest."""
    left = height - 3
    alarms = _grant(len(picture.alarms), left - 8 if left > 12 else left - 2)
    left -= alarms + 3 if alarms else 0
    services = _grant(len(picture.services) or 1, left - 7)
    drops = _grant(len(picture.drops()), min(left - 9 - services, 3)) if services else 0
    below = (services + 2 if services else 0) + drops
    assets = _grant(len(picture.assets) or 1, left - below - 2)
    return Shares(alarms, assets, services, drops)


def _grant(wanted: int, available: int) -> int:
    return max(min(wanted, available), 0)


def _header(picture: Picture, frame: Frame) -> Text:
    name = Text.assemble((" MILLWRIGHT ", "bold"), (printable(frame.box), "dim"))
    return _spread(name, Text(f"{clock(frame.now)}  Ctrl-C leaves ", "dim"), frame.width)


def _verdict(picture: Picture, frame: Frame) -> Text:
    """The one line to read from across the room."""
    text, style = verdict(picture, frame)
    return Text(set_cell_size(f" {text}", frame.width), style)


def verdict(picture: Picture, frame: Frame) -> tuple[str, str]:
    """The state of everything in one sentence, and its style."""
    calling = [pair for pair in picture.standing() if pair[1].state is AlarmState.UNACKNOWLEDGED]
    if not frame.connected:
        return "NO CONNECTION to the broker; trying again. What stands below is old.", "bold black on yellow"
    if calling:
        worst = any(alarm.severity is Severity.ALARM for _, alarm in calling)
        style = "bold white on red" if worst else "bold black on yellow"
        return _calling(calling), style
    gone = [name for name, state in picture.services.items() if not state.online]
    if gone:
        return f"OFFLINE: {', '.join(sorted(gone))}; 'millwright doctor' says more", "bold black on yellow"
    return _calm(picture)


def _calling(calling: list[tuple[str, Alarm]]) -> str:
    asset, first = calling[0]
    more = f", and {len(calling) - 1} more" if len(calling) > 1 else ""
    cause = f": {cause_text(first)}" if cause_text(first) else ""
    return f"{first.severity.upper()}  {asset}{cause}{more}"


def _calm(picture: Picture) -> tuple[str, str]:
    if picture.alarms:
        return f"NOTHING NEW  {counted(len(picture.alarms), 'alarm')} standing, seen before", "bold black on cyan"
    stages = [asset.stage for asset in picture.assets.values()]
    if not stages:
        return "NO ASSETS YET: nothing has been heard on the bus", "bold black on yellow"
    judged = sum(stage in (Stage.WARNING, Stage.ALARMING) for stage in stages)
    if not judged:
        return "LEARNING what normal looks like; alarms come later", "bold black on cyan"
    rest = f", {len(stages) - judged} still learning" if judged < len(stages) else ""
    return f"ALL NORMAL  {counted(judged, 'asset')} watched{rest}", "bold black on green"


def _figures(picture: Picture, frame: Frame) -> Text:
    dropped = sum(picture.drops().values())
    parts = [
        f"{amount(round(picture.rate(Kind.READING, frame.now), 1))} readings/s",
        f"{amount(round(picture.rate(Kind.SCORE, frame.now), 1))} scores/s",
        "computed on " + "; ".join(printable(device) for device in picture.devices()) if picture.devices() else "",
    ]
    figures = Text(" " + "  ".join(part for part in parts if part), "dim")
    return figures.append(f"  {dropped:,} dropped", "yellow" if dropped else "dim")


def _alarms(picture: Picture, rows: int, frame: Frame) -> list[Text]:
    if not rows:
        return []
    shown, more = _shown(picture.standing(), rows)
    room = max(frame.width - 1 - 8 - 7 - 17 - 16, 16)
    cause = min(max(cell_len(cause_text(alarm)) for _, alarm in shown), room // 2) + 1
    asset = min(max(cell_len(path) for path, _ in shown), room - cause) + 1
    heading = _row([("ALARMS", 8), ("asset", asset), ("cause", cause), ("score", 7), ("since", 17), ("state", 16)])
    shares = {path: _share(picture.assets[path]) for path, _ in shown if path in picture.assets}
    lines = [_alarm_line(path, alarm, shares.get(path, ""), (asset, cause), frame) for path, alarm in shown]
    return [Text(""), heading, *lines, *more, *_advice(picture)]


def _alarm_line(path: str, alarm: Alarm, share: str, sizes: tuple[int, int], frame: Frame) -> Text:
    """`share` is the asset's score of now: that of the alarm is of the moment it was raised."""
    asset, cause = sizes
    state, style = _alarm_state(alarm)
    return _row(
        [
            ("ALARM" if alarm.severity is Severity.ALARM else "warning", 8, style),
            (_tail(path, asset - 1), asset, style),
            (cause_text(alarm), cause, style),
            (share if alarm.condition == ANOMALY else "", 7, ""),
            (f"{clock(alarm.raised)[:5]} {span((frame.now - alarm.raised) / SECOND)}", 17, ""),
            (state, max(frame.width - 33 - asset - cause, 1), style),
        ]
    )


def _advice(picture: Picture) -> list[Text]:
    """What the first alarm says of itself, or what a person can do about it where nobody has seen it."""
    path, alarm = picture.standing()[0]
    if alarm.message:
        return [Text(f" {path}: {printable(alarm.message)}", "dim")]
    if alarm.state not in (AlarmState.UNACKNOWLEDGED, AlarmState.RETURNED):
        return []
    return [Text(f" you have seen it?  millwright alarms ack {path}", "dim")]


def _shown(items: list[_T], rows: int) -> tuple[list[_T], list[Text]]:
    """The first items, and a line about those for which there is no room."""
    if len(items) <= rows or rows == 1:
        return items[:rows], []
    return items[: rows - 1], [Text(f" and {len(items) - rows + 1} more", "dim")]


def _alarm_state(alarm: Alarm) -> tuple[str, str]:
    by = f" by {printable(alarm.by)}" if alarm.by else ""
    match alarm.state:
        case AlarmState.UNACKNOWLEDGED:
            return "not seen yet", "bold red" if alarm.severity is Severity.ALARM else "bold yellow"
        case AlarmState.RETURNED:
            return "over, not seen", "yellow"
        case AlarmState.SHELVED:
            return f"shelved to {clock(alarm.until)[:5]}{by}", "dim"
        case _:
            return f"seen{by}", ""


def _assets(picture: Picture, rows: int, frame: Frame) -> list[Text]:
    if not rows:
        return []
    shown, more = _shown(picture.worst(), rows)
    if not shown:
        return [Text(""), _row([("ASSETS", 20)]), Text(f" none yet; to try: {_TRY}", "dim")]
    bar = 8 if frame.width < 100 else 12
    asset = min(max(6, *(cell_len(one.path) for one in shown)), max(frame.width // 3 - 5, 8)) + 1
    values = max(frame.width - 1 - asset - 17 - bar - 8 - 7, 0)
    sizes = (asset, bar, values)
    cells = [("ASSETS", asset), ("stage", 17), ("score", bar + 8), ("age", 7), ("last values", values)]
    return [Text(""), _row(cells), *(_asset_line(one, sizes, frame) for one in shown), *more]


def _asset_line(item: Asset, sizes: tuple[int, int, int], frame: Frame) -> Text:
    asset, bar, values = sizes
    age = item.age_s(frame.now)
    abnormal = item.score is not None and item.score.alarm
    line = _row(
        [(_tail(item.path, asset - 1), asset, "bold red" if abnormal else ""), (stage_text(item), 17, "dim")],
        trim=False,
    )
    line.append_text(_bar(item, bar))
    line.append(_fit(_share(item), 6), _strain_style(item))
    line.append(" " + _fit(span(age), 6), "bold yellow" if age > STALE_S else "dim")
    line.append_text(_values(item, values))
    line.rstrip()
    return line


def _values(asset: Asset, size: int) -> Text:
    """The last values, that of the channel that weighs most first."""
    text = Text(" ")
    cause = asset.score.cause if asset.score and asset.strain >= 0.75 else ""
    if cause:
        text.append(printable(cause) + " ", _strain_style(asset))
        text.append(amount(asset.values[cause]) + "  " if cause in asset.values else "")
    rest = [f"{printable(name)} {amount(value)}" for name, value in asset.values.items() if name != cause]
    text.append("  ".join(rest) + (" ..." if asset.points > len(asset.values) else ""), "dim")
    text.truncate(size, overflow="ellipsis")
    return text


def stage_text(asset: Asset) -> str:
    """What the asset's detector may do yet, with its progress."""
    score = asset.score
    if score is None:
        return "not judged"
    if score.stage is Stage.ALARMING:
        return STAGES[score.stage]
    return f"{STAGES[score.stage]} {min(100 * score.rows // FULL_ROWS, 99)} %"


def _bar(asset: Asset, width: int) -> Text:
    """The score on a scale of one and a half thresholds; the threshold is the upright stroke."""
    limit = round(width / _BAR_LIMIT)
    filled = round(min(asset.strain, _BAR_LIMIT) / _BAR_LIMIT * width)
    signs = ["━" if place < filled else " " for place in range(width)]
    if asset.score and asset.score.threshold > 0:
        signs[min(limit, width - 1)] = "┃" if filled > limit else "│"
    return Text("".join(signs) + " ", _strain_style(asset))


def _share(asset: Asset) -> str:
    """The score in thresholds."""
    if asset.score is None or not asset.score.threshold > 0:
        return ""
    return amount(round(asset.strain, 2)) if asset.strain < 100 else "> 99"


def _strain_style(asset: Asset) -> str:
    """Colour is for what counts: a score is a guess as long as the asset learns."""
    if asset.stage not in (Stage.WARNING, Stage.ALARMING):
        return "dim"
    if asset.strain >= 1.0:
        return "bold red"
    return "yellow" if asset.strain >= 0.75 else "green"


def _services(picture: Picture, rows: int) -> list[Text]:
    if not rows:
        return []
    items = sorted(picture.services.items(), key=lambda pair: (pair[1].online, balanced(pair[1]), pair[0]))
    names = ("received", "= processed", "+ queued", "+ dropped")
    heading = _row([("SERVICES", 15), *((f"{name:>13}", 14) for name in names)])
    lines = [_service_line(name, state) for name, state in items[:rows]]
    return [Text(""), heading, *(lines or [Text(" no service has said a word yet", "yellow")])]


def _service_line(name: str, state: State) -> Text:
    dropped = sum(state.dropped.values())
    return _row(
        [
            (name, 11, "" if state.online else "bold yellow"),
            ("on" if state.online else "OFF", 4, "green" if state.online else "bold yellow"),
            (f"{state.received:>13,}", 14, "dim"),
            (f"{state.processed:>13,}", 14, "dim"),
            (f"{state.queued:>13,}", 14, "dim"),
            (f"{dropped:>13,}", 14, "yellow" if dropped else "dim"),
            ("" if balanced(state) else "wrong!", 7, "bold yellow"),
        ]
    )


def _drops(picture: Picture, rows: int) -> list[Text]:
    lines = []
    for reason, count in list(picture.drops().items())[:rows]:
        states = [state for state in picture.services.values() if reason in state.dropped]
        example = next((found for state in states if (found := example_of(state, reason))), "")
        lines.append(Text.assemble((f" {count:,} x {printable(reason)}  ", "yellow"), (example, "dim")))
    return lines


def _row(cells: Sequence[tuple[str, int] | tuple[str, int, str]], trim: bool = True) -> Text:
    """Cells (text, size, style; dim by default), one blank before the first; a text too long ends in an ellipsis."""
    row = Text(" ")
    for text, size, *style in cells:
        if size > 0:
            row.append(_fit(text, size - 1) + " ", style[0] if style else "dim")
    if trim:
        row.rstrip()
    return row


def _tail(path: str, size: int) -> str:
    """The end of an asset's path, which says more than its beginning."""
    return path if len(path) <= size else "…" + path[len(path) - size + 1 :]


def _fit(text: str, size: int) -> str:
    if cell_len(text) <= size:
        return set_cell_size(text, size)
    return set_cell_size(text, size - 1) + "…" if size > 0 else ""


def _spread(left: Text, right: Text, width: int) -> Text:
    gap = max(width - left.cell_len - right.cell_len, 1)
    return left.append(" " * gap).append_text(right)
