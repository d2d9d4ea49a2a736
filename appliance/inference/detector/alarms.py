"""Alarms as ISA-18.2 states: what a judgement, an operator or the passing of time makes of an alarm.

Pure: times come in, new states go out; whoever calls makes them durable and publishes them, in that order.

    (none) --condition--> unacknowledged --ack--> acknowledged --clears--> normal
                               |                       ^
                             clears                    | ack of an active alarm
                               v                       |
                            returned --condition--> unacknowledged          returned --ack--> normal
    any standing state --shelve--> shelved --unshelve or its time is up--> unacknowledged if active, else normal

An asset has at most one standing alarm of each condition: an anomaly, and what is wrong with its readings, each with a
life of its own. An alarm's identity follows from asset, condition and the moment it was raised, so that a judgement
made twice (before and after a crash) is one alarm.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from appliance.errors import MillwrightError
from appliance.events.schema import ANOMALY, Alarm, AlarmState, Score, Severity, Stage

MAX_MESSAGE = 200  # characters
REMEMBERED = 64  # ended alarms that are told again after a lost connection

_SEVERITY = {Stage.WARNING: Severity.WARNING, Stage.ALARMING: Severity.ALARM}
_RANK = {Severity.WARNING: 0, Severity.ALARM: 1}

Key = tuple[str, str]  # asset and condition


class Change(NamedTuple):
    """An asset's alarm in its new state."""

    asset: str
    alarm: Alarm


class AlarmBook:
    """All standing alarms and the last few that ended."""

    def __init__(self) -> None:
        self.explain: Callable[[str], str] = lambda asset: ""  # why an asset's anomaly ended, where nobody can see it
        self.standing: dict[Key, Alarm] = {}
        self.ended: deque[Change] = deque(maxlen=REMEMBERED)

    def judge(self, asset: str, score: Score) -> Change | None:
        """The change that a judgement brings, or None."""
        alarm = self.standing.get((asset, ANOMALY))
        severity = _SEVERITY.get(score.stage)
        if alarm is None:
            return self._raise(asset, score, severity) if score.alarm and severity else None
        if not score.alarm:
            return self._clear(asset, alarm, score.at, self.explain(asset)) if alarm.active else None
        if severity and _RANK[severity] > _RANK[alarm.severity]:
            return self._escalate(asset, alarm, score, severity)
        return None if alarm.active else self._reactivate(asset, alarm, score)

    def of(self, asset: str) -> list[Alarm]:
        """Its standing alarms, the most severe first, of these the newest."""
        mine = [alarm for (name, _), alarm in self.standing.items() if name == asset]
        return sorted(mine, key=lambda alarm: (-_RANK[alarm.severity], -alarm.raised))

    def hold(
        self,
        asset: str,
        condition: str,
        why: str,
        at: int,
        cause: str = "",
        device: str = "",
        severity: Severity = Severity.WARNING,
        value: float = 1.0,
        limit: float = 1.0,
    ) -> Change | None:
        """The change that a condition brings which is no matter of scores: it holds while `why` is not empty, with
        `value` against `limit`, from time `at`. None where nothing changes."""
        alarm = self.standing.get((asset, condition))
        if not why:
            return self._clear(asset, alarm, at) if alarm and alarm.active else None
        if alarm is None:
            return self._put(
                asset,
                Alarm(
                    id=identity_of(asset, at, condition),
                    at=at,
                    raised=at,
                    state=AlarmState.UNACKNOWLEDGED,
                    severity=severity,
                    cause=cause,
                    score=value,
                    threshold=limit,
                    condition=condition,
                    device=device,
                    message=why[:MAX_MESSAGE],
                ),
            )
        if alarm.active:
            return None
        state = AlarmState.SHELVED if alarm.state is AlarmState.SHELVED else AlarmState.UNACKNOWLEDGED
        return self._put(asset, alarm, at=at, active=True, state=state, message=why[:MAX_MESSAGE])

    def restate(self, asset: str, condition: str, why: str, at: int) -> Change | None:
        """The words of a condition that holds on, where they are others now."""
        alarm = self.standing.get((asset, condition))
        if alarm is None or not alarm.active or alarm.message == why[:MAX_MESSAGE]:
            return None
        return self._put(asset, alarm, at=at, message=why[:MAX_MESSAGE])

    def note(self, asset: str, condition: str, why: str, at: int) -> Change | None:
        """Words for an alarm that stands, active or not."""
        alarm = self.standing.get((asset, condition))
        return self._put(asset, alarm, at=at, message=why[:MAX_MESSAGE]) if alarm else None

    def dismiss(self, alarm: Alarm, asset: str, by: str, at: int) -> Change:
        """Somebody says that it is normal: the alarm ends, whatever was said of it before."""
        return self._put(asset, alarm, at=at, active=False, state=AlarmState.NORMAL, by=by, until=0)

    def confirm(self, alarm: Alarm, asset: str, by: str, at: int) -> Change | None:
        """Somebody says that it is a fault: it is an alarm, and it was seen. None where both is known."""
        state = AlarmState.ACKNOWLEDGED if alarm.state is AlarmState.UNACKNOWLEDGED else alarm.state
        if (state, Severity.ALARM) == (alarm.state, alarm.severity):
            return None
        return self._put(asset, alarm, at=at, state=state, severity=Severity.ALARM, by=by)

    def find(self, identity: str) -> tuple[str, Alarm] | None:
        """A standing alarm by its id, or the most severe of an asset."""
        found = [(asset, alarm) for (asset, _), alarm in self.standing.items() if identity in (alarm.id, asset)]
        return min(found, key=lambda pair: (-_RANK[pair[1].severity], -pair[1].raised), default=None)

    def acknowledge(self, identity: str, by: str, at: int) -> Change:
        asset, alarm = self._find(identity, AlarmState.UNACKNOWLEDGED, AlarmState.RETURNED)
        if alarm.state is AlarmState.UNACKNOWLEDGED:
            return self._put(asset, alarm, at=at, state=AlarmState.ACKNOWLEDGED, by=by)
        if alarm.state is AlarmState.RETURNED:
            return self._put(asset, alarm, at=at, state=AlarmState.NORMAL, by=by)
        raise _impossible(alarm, "acknowledged")

    def shelve(self, identity: str, by: str, at: int, until: int) -> Change:
        asset, alarm = self._find(identity, *(state for state in AlarmState if state is not AlarmState.SHELVED))
        if until <= at:
            raise MillwrightError("an alarm can be shelved for the time to come only", "Give a positive time.")
        return self._put(asset, alarm, at=at, state=AlarmState.SHELVED, by=by, until=until)

    def unshelve(self, identity: str, by: str, at: int) -> Change:
        asset, alarm = self._find(identity, AlarmState.SHELVED)
        if alarm.state is not AlarmState.SHELVED:
            raise _impossible(alarm, "unshelved")
        return self._unshelve(asset, alarm, by, at)

    def expire(self, now: int) -> list[Change]:
        """Alarms whose shelving is over."""
        over = [
            (asset, alarm)
            for (asset, _), alarm in self.standing.items()
            if alarm.state is AlarmState.SHELVED and alarm.until <= now
        ]
        return [self._unshelve(asset, alarm, alarm.by, now) for asset, alarm in over]

    def knows(self, asset: str, identity: str) -> bool:
        """Whether an alarm stands, or has ended lately."""
        return any(alarm.id == identity for alarm in self.of(asset)) or any(
            change.alarm.id == identity for change in self.ended
        )

    def snapshot(self) -> dict[str, Any]:
        """Plain values, for `restore`."""
        return {
            "standing": [[asset, msgspec.to_builtins(alarm)] for (asset, _), alarm in self.standing.items()],
            "ended": [[asset, msgspec.to_builtins(alarm)] for asset, alarm in self.ended],
        }

    def restore(self, data: dict[str, Any]) -> None:
        """msgspec.ValidationError where the data is not a snapshot."""
        self.standing = {(asset, alarm.condition): alarm for asset, alarm in _changes(data.get("standing", []))}
        self.ended = deque(_changes(data.get("ended", [])), maxlen=REMEMBERED)

    def _raise(self, asset: str, score: Score, severity: Severity) -> Change:
        alarm = Alarm(
            id=identity_of(asset, score.at),
            at=score.at,
            raised=score.at,
            state=AlarmState.UNACKNOWLEDGED,
            severity=severity,
            cause=score.cause,
            score=score.score,
            threshold=score.threshold,
            branch=score.branch,
            model=score.model,
            version=score.version,
            device=score.device,
        )
        return self._put(asset, alarm)

    def _clear(self, asset: str, alarm: Alarm, at: int, why: str = "") -> Change:
        message = why[:MAX_MESSAGE] or alarm.message
        if alarm.state is AlarmState.SHELVED:
            return self._put(asset, alarm, at=at, active=False, message=message)
        state = AlarmState.NORMAL if alarm.state is AlarmState.ACKNOWLEDGED else AlarmState.RETURNED
        return self._put(asset, alarm, at=at, active=False, state=state, message=message)

    def _reactivate(self, asset: str, alarm: Alarm, score: Score) -> Change:
        shelved = alarm.state is AlarmState.SHELVED
        state = AlarmState.SHELVED if shelved else AlarmState.UNACKNOWLEDGED
        return self._put(
            asset, alarm, at=score.at, active=True, state=state, cause=score.cause, score=score.score, message=""
        )

    def _escalate(self, asset: str, alarm: Alarm, score: Score, severity: Severity) -> Change:
        """A worse alarm wants to be seen anew, shelved ones excepted."""
        shelved = alarm.state is AlarmState.SHELVED
        state = AlarmState.SHELVED if shelved else AlarmState.UNACKNOWLEDGED
        return self._put(
            asset, alarm, at=score.at, active=True, state=state, severity=severity, cause=score.cause, score=score.score
        )

    def _unshelve(self, asset: str, alarm: Alarm, by: str, at: int) -> Change:
        state = AlarmState.UNACKNOWLEDGED if alarm.active else AlarmState.NORMAL
        return self._put(asset, alarm, at=at, state=state, by=by, until=0)

    def _put(self, asset: str, alarm: Alarm, **changed: Any) -> Change:
        change = Change(asset, msgspec.structs.replace(alarm, **changed))
        key = asset, alarm.condition
        if change.alarm.state is AlarmState.NORMAL:
            del self.standing[key]
            self.ended.append(change)
        else:
            self.standing[key] = change.alarm
        return change

    def _find(self, identity: str, *wanted: AlarmState) -> tuple[str, Alarm]:
        """By the alarm's id or by its asset: of several, the most severe one in a state that is `wanted`."""
        found = self.find(identity)
        if found is None:
            raise MillwrightError(
                f"no standing alarm is '{identity}'", "'millwright alarms list' shows those that stand."
            )
        asset = found[0]
        others = [alarm for alarm in self.of(asset) if alarm.state in wanted] if identity == asset else []
        return (asset, others[0]) if others else found


def identity_of(asset: str, raised: int, condition: str = ANOMALY) -> str:
    """Ten hexadecimal digits: short enough to type, one in 10^12 to meet another."""
    name = asset if condition == ANOMALY else f"{asset}\n{condition}"
    return hashlib.sha256(f"{name}\n{raised}".encode()).hexdigest()[:10]


def _impossible(alarm: Alarm, verb: str) -> MillwrightError:
    return MillwrightError(
        f"alarm {alarm.id} is {alarm.state} and cannot be {verb}", "'millwright alarms list' shows it."
    )


def _changes(pairs: Iterable[Any]) -> list[Change]:
    return [Change(*pair) for pair in msgspec.convert(list(pairs), list[tuple[str, Alarm]])]
