"""What a person says: this was normal, this was a fault; and whether what an asset learned from was healthy.

    normal   the alarm ends, the detector takes the present state to be normal at once; of an asset without an alarm: a
             label alone, or the word that its learning period was healthy
    fault    the alarm stands as an alarm, and nothing is ever learned from it; of an asset without an alarm, and no
             span of time given: an alarm is raised, which ends when it is called normal
    relearn  the asset begins anew

Each leaves a label: asset, span, verdict, who and when. Pure: times come in.
"""

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from appliance.errors import MillwrightError
from appliance.events.schema import ANOMALY, Alarm, AlarmState, Label, Severity, Stage, Verdict
from appliance.inference.detector.alarms import AlarmBook, Change
from appliance.inference.detector.detector import Detector
from appliance.inference.detector.findings import FLAT, MISSING, RANGE, WEAR, Finding
from appliance.inference.detector.rounds import Rounds

REPORTED = "reported"  # the condition of an alarm that a person raised
LEARNED = "learning-period"  # the condition of a label about one
ACCEPTED = (ANOMALY, FLAT, MISSING, WEAR, REPORTED)  # conditions that may be normal
REMEMBERED = 256  # labels that are told again after a lost connection
MAX_LESSONS = 100_000
NAMED = 8  # in `describe`

_Time = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # UTC ns


class Said(Struct, forbid_unknown_fields=True):
    """The arguments of `normal` and `fault`. Without a span: that of the alarm."""

    alarm: str  # its id or its asset
    since: _Time | None = None
    until: _Time | None = None


class Answer(NamedTuple):
    asset: str
    changes: list[Change]
    label: Label | None
    result: dict[str, Any]


class Lesson(Struct):
    """An asset's learning period."""

    since: int  # 0: unknown
    until: int = 0  # 0: it goes on
    confirmed: bool = False


class Feedback:
    def __init__(self, book: AlarmBook, detector: Detector, rounds: Rounds) -> None:
        self._book, self._detector, self._rounds = book, detector, rounds
        book.explain = detector.remark
        self.labels: deque[tuple[str, Label]] = deque(maxlen=REMEMBERED)
        self._lessons: dict[str, Lesson] = {}

    def find(self, findings: Iterable[Finding], now: int) -> list[Change]:
        """What the rounds found, as changes of alarms; and who has learned by now."""
        self._follow(now)
        changes = []
        for found in findings:
            change = self._book.hold(
                found.asset,
                found.condition,
                found.why,
                now,
                found.cause,
                severity=found.severity,
                value=found.value,
                limit=found.limit,
            )
            if change is None and found.why:
                change = self._book.restate(found.asset, found.condition, found.why, now)
            if change is not None:
                changes.append(change)
        for asset in self._detector.remarked():
            change = self._book.note(asset, ANOMALY, self._detector.remark(asset), now)
            if change is not None:
                changes.append(change)
        return changes

    def take(self, verdict: Verdict, said: Said, by: str, now: int) -> Answer:
        """MillwrightError where nobody knows what is meant, or it cannot be."""
        found = self._book.find(said.alarm)
        if found is not None:
            return self._of_alarm(verdict, said, *found, by, now)
        ended = next((change for change in reversed(self._book.ended) if said.alarm == change.alarm.id), None)
        if ended is not None:
            return self._of_span(verdict, said, ended.asset, ended.alarm, by, now)
        if self._knows(said.alarm):
            return self._of_asset(verdict, said, by, now)
        raise MillwrightError(
            f"neither an alarm nor an asset is '{said.alarm[:80]}'",
            "'millwright alarms list' shows alarms, 'millwright watch' assets.",
        )

    def relearn(self, asset: str, by: str, now: int) -> list[Change]:
        """MillwrightError where there is no such asset."""
        if not self._knows(asset):
            raise MillwrightError(f"no asset is '{asset[:80]}'", "'millwright watch' shows those that there are.")
        self._detector.forget(asset)
        self._rounds.forget(asset)
        self._lessons.pop(asset, None)
        return [self._book.dismiss(alarm, asset, by, now) for alarm in self._book.of(asset)]

    def describe(self) -> dict[str, Any]:
        """Assets whose learning period nobody has called healthy yet."""
        waiting = [name for name, lesson in self._lessons.items() if lesson.until and not lesson.confirmed]
        return {"unconfirmed": {"count": len(waiting), "assets": waiting[:NAMED]}} if waiting else {}

    def snapshot(self) -> dict[str, Any]:
        return {
            "labels": [[asset, msgspec.to_builtins(label)] for asset, label in self.labels],
            "lessons": {name: msgspec.to_builtins(lesson) for name, lesson in self._lessons.items()},
        }

    def restore(self, data: dict[str, Any]) -> None:
        """msgspec.ValidationError where the data is not a snapshot."""
        labels = msgspec.convert(data.get("labels", []), list[tuple[str, Label]])
        self._lessons = msgspec.convert(data.get("lessons", {}), dict[str, Lesson])
        self.labels = deque(labels, maxlen=REMEMBERED)

    def _of_alarm(self, verdict: Verdict, said: Said, asset: str, alarm: Alarm, by: str, now: int) -> Answer:
        if verdict is Verdict.FAULT:
            change = self._book.confirm(alarm, asset, by, now)
            self._rounds.mark(asset)
            return self._answer(verdict, said, asset, alarm, by, now, [change] if change else [])
        if alarm.condition == RANGE:
            raise MillwrightError(
                f"{asset}: a declared limit is not learned", "Change it in [[limits]], or shelve the alarm."
            )
        if alarm.condition not in ACCEPTED:
            raise MillwrightError(f"{asset}: '{alarm.condition}' is about the box, not the machine", "Shelve it.")
        self._rounds.accept(asset, alarm.condition)
        if alarm.condition in (ANOMALY, REPORTED):
            self._detector.accept(asset)
        return self._answer(verdict, said, asset, alarm, by, now, [self._book.dismiss(alarm, asset, by, now)])

    def _of_span(self, verdict: Verdict, said: Said, asset: str, alarm: Alarm, by: str, now: int) -> Answer:
        """An alarm that is over: a label alone. Said twice, it is one."""
        known = any(
            label.alarm == alarm.id and label.verdict is verdict for name, label in self.labels if name == asset
        )
        if known and said.since is None and said.until is None:
            return Answer(asset, [], None, _result(asset, alarm.id, AlarmState.NORMAL.value, verdict))
        return self._answer(verdict, said, asset, alarm, by, now, [])

    def _of_asset(self, verdict: Verdict, said: Said, by: str, now: int) -> Answer:
        asset, lesson = said.alarm, self._lessons.get(said.alarm)
        nothing = Alarm("", now, said.since or now, AlarmState.NORMAL, Severity.ALARM, "", 1.0, 1.0, LEARNED)
        if said.since is not None or said.until is not None:
            return self._answer(verdict, said, asset, msgspec.structs.replace(nothing, condition=ANOMALY), by, now, [])
        if verdict is Verdict.FAULT:
            change = self._book.hold(asset, REPORTED, f"called a fault by {by}", now, severity=Severity.ALARM)
            assert change is not None
            seen = self._book.acknowledge(change.alarm.id, by, now)
            return self._answer(verdict, said, asset, change.alarm, by, now, [seen])
        if lesson is None or not lesson.until:
            raise MillwrightError(
                f"{asset} has no alarm and has not learned yet: there is nothing to confirm",
                "Name a span with --since and --until.",
            )
        lesson.confirmed = True
        span = Said(asset, lesson.since or lesson.until, lesson.until)
        return self._answer(verdict, span, asset, nothing, by, now, [])

    def _answer(
        self, verdict: Verdict, said: Said, asset: str, alarm: Alarm, by: str, now: int, changes: list[Change]
    ) -> Answer:
        since = alarm.raised if said.since is None else said.since
        until = said.until if said.until is not None else now if alarm.active else alarm.at
        if until < since:
            raise MillwrightError("the span ends before it begins", "Give --since before --until.")
        label = Label(now, verdict, since, until, by, alarm.id, alarm.condition, alarm.cause)
        self.labels.append((asset, label))
        state = changes[0].alarm.state if changes else alarm.state
        result = _result(asset, alarm.id, state.value, verdict)
        if verdict is Verdict.FAULT and self._taught(asset, since, until):
            result["advice"] = f"It learned in that time: 'millwright alarms relearn {asset}' lets it begin anew."
        return Answer(asset, changes, label, result)

    def _taught(self, asset: str, since: int, until: int) -> bool:
        lesson = self._lessons.get(asset)
        return lesson is not None and lesson.since <= until and (not lesson.until or since <= lesson.until)

    def _follow(self, now: int) -> None:
        assets = self._detector.assets()
        for known in assets:
            lesson = self._lessons.get(known.asset)
            if lesson is None and len(self._lessons) < MAX_LESSONS:
                lesson = self._lessons[known.asset] = Lesson(now if known.stage is Stage.COLLECTING else 0)
            if lesson is not None and not lesson.until and known.stage is Stage.ALARMING:
                lesson.until = now
        if len(self._lessons) > len(assets):
            present = {known.asset for known in assets}
            self._lessons = {name: lesson for name, lesson in self._lessons.items() if name in present}

    def _knows(self, asset: str) -> bool:
        return any(known.asset == asset for known in self._detector.assets())


def _result(asset: str, alarm: str, state: str, verdict: Verdict) -> dict[str, Any]:
    return {"asset": asset, "alarm": alarm, "state": state, "verdict": verdict.value}
