"""What was meant by a topic that nobody listens to: a kind misspelt or left out, another version, another root.

explain("mw/v1/readings/line1/pump")  # 'readings' is no kind of message; did you mean mw/v1/reading/line1/pump?
"""

import difflib
import re

from appliance.errors import EventError
from appliance.events import topics
from appliance.events.schema import Kind

REASONS = {
    "no-such-kind": "a kind of message that nobody listens to: misspelt, or left out",
    "no-such-version": "a version that this release does not speak, or none at all",
    "no-such-root": "a topic that is nearly, but not, below mw/v1",
}

_ROOT, _VERSION = topics.ROOT.split("/")
FILTERS = (f"{_ROOT}/#", f"/{_ROOT}/#", f"{_ROOT.upper()}/#", f"{_ROOT.title()}/#")  # of all that `explain` judges

_KINDS = [kind.value for kind in Kind]
_MEANT = {  # words of people who mean one of ours
    "data": Kind.READING,
    "measurement": Kind.READING,
    "measurements": Kind.READING,
    "sensor": Kind.READING,
    "sensors": Kind.READING,
    "telemetry": Kind.READING,
    "value": Kind.READING,
    "values": Kind.READING,
    "wave": Kind.BLOCK,
    "waveform": Kind.BLOCK,
    "waveforms": Kind.BLOCK,
}
_A_VERSION = re.compile(r"v?\d+", re.IGNORECASE)


def explain(topic: str) -> EventError | None:
    """Why nobody hears a topic of FILTERS, with the one that was probably meant; None where somebody does, or will say
    himself what is wrong with it."""
    root, _, rest = topic.partition("/")
    if root != _ROOT:
        meant = _meant(topic.strip("/").lower().partition("/")[2])
        wrong = "begins with a slash" if not root else f"begins with {root}, not {_ROOT}"
        return _refusal("no-such-root", f"it {wrong}", topic, meant)
    version, _, rest = rest.partition("/")
    if version == _VERSION:
        kind, _, _ = rest.partition("/")
        if kind in _KINDS:
            return None
        return _refusal("no-such-kind", f"'{kind[:40]}' is no kind of message", topic, _of_kind(rest))
    wrong = f"there is no version '{version}' here" if _A_VERSION.fullmatch(version) else "it names no version"
    return _refusal("no-such-version", wrong, topic, _meant(topic.partition("/")[2]))


def _refusal(reason: str, wrong: str, topic: str, meant: str) -> EventError:
    hint = f"; did you mean {meant}?" if meant else ""
    return EventError(reason, f"{topic[:80]}: {wrong}{hint}")


def _meant(rest: str) -> str:
    """The topic of what stands behind the root."""
    head, _, tail = rest.partition("/")
    return _of_kind(tail if _A_VERSION.fullmatch(head) else rest)


def _of_kind(rest: str) -> str:
    """A topic of the kind that the first word comes nearest to; of a reading where it looks like a part of an asset."""
    word, _, path = rest.lstrip("/").partition("/")
    near = difflib.get_close_matches(word.lower(), _KINDS, n=1, cutoff=0.7)
    kind = _MEANT.get(word.lower()) or (Kind(near[0]) if near else None)
    asset = topics.mended(path if kind else f"{word}/{path}")
    return topics.topic(kind or Kind.READING, asset) if asset else ""
