"""Every event on the bus, on one page.

Times are UTC nanoseconds since 1970. Rule: add a field with a default, never rename one; a new meaning is a new
version of the topic root. Text of a person's (`by`, `message`) is at most 200 characters.
"""

from array import array
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    Samples = array[float]
else:
    Samples = array  # array.array takes no subscript before Python 3.12


ANOMALY = "anomaly"  # the condition of an alarm that a score raised


class Kind(StrEnum):
    """The second part of a topic: what a message is."""

    READING = "reading"
    BLOCK = "block"
    SCORE = "score"
    ALARM = "alarm"
    STATE = "state"
    COMMAND = "command"
    AUDIT = "audit"
    LABEL = "label"
    DEVICE = "device"


class Stage(StrEnum):
    """What an asset's detector may do yet (rows seen: see `appliance.inference.detector`)."""

    COLLECTING = "collecting"  # too little seen to say anything
    LEARNING = "learning"  # scores are shown, nobody is called
    WARNING = "warning"  # a crossing is a warning
    ALARMING = "alarming"  # a crossing is an alarm


class AlarmState(StrEnum):
    """ISA-18.2 states of an alarm (clause 5 life cycle); NORMAL ends it and clears the retained message."""

    UNACKNOWLEDGED = "unacknowledged"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "returned"  # returned to normal, unacknowledged
    SHELVED = "shelved"
    NORMAL = "normal"


class Severity(StrEnum):
    WARNING = "warning"
    ALARM = "alarm"


class Verdict(StrEnum):
    """What a person says of a span of time."""

    NORMAL = "normal"
    FAULT = "fault"


class CommandState(StrEnum):
    """Each state has one owner: the asker writes INIT, the service that is asked writes all others."""

    INIT = "init"
    EXECUTING = "executing"
    SUCCESSFUL = "successful"
    FAILED = "failed"


class Reading(Struct, frozen=True):
    """All points of one asset, sampled together."""

    at: int
    values: dict[str, float]


class Block(Struct, frozen=True):
    """Evenly sampled waveforms that start at `at`: float32 samples, `rate` in Hz, all points of one length."""

    at: int
    rate: float
    values: dict[str, Samples]


class Score(Struct, frozen=True):
    """A judgement of one asset: `score` against `threshold`, both in units of the asset's own learning period."""

    at: int  # of the newest reading that was judged
    score: float
    threshold: float
    stage: Stage
    cause: str = ""  # the channel that weighs most
    branch: str = ""  # the part of the detector that decided: level, autoencoder, ...
    alarm: bool = False  # the detector holds the asset to be abnormal
    rows: int = 0  # rows learned from so far
    model: str = ""
    version: str = ""
    device: str = ""  # that computed it: CPU, GPU, NPU


class Alarm(Struct, frozen=True):
    """One alarm of one asset in its present state. Retained while it stands."""

    id: str
    at: int  # of this state
    raised: int
    state: AlarmState
    severity: Severity
    cause: str
    score: float
    threshold: float
    condition: str = ANOMALY  # what it is about
    branch: str = ""
    model: str = ""
    version: str = ""
    device: str = ""
    active: bool = True  # the condition holds now, whatever a person has said of it
    by: str = ""  # who acknowledged or shelved
    until: int = 0  # end of shelving
    message: str = ""


class State(Struct, frozen=True):
    """A service's word about itself: retained, with `online = false` as its last will.

    The books balance: received = processed + queued + the sum of dropped.
    """

    at: int
    online: bool
    version: str = ""
    received: int = 0
    processed: int = 0
    queued: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)  # plain values, per service


class Command(Struct, frozen=True):
    """A request and its progress, retained at command/<service>/<verb>/<id> until the asker clears it."""

    at: int
    state: CommandState
    args: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""  # why it failed, with the remedy


class Audit(Struct, frozen=True):
    """A sensitive operation that was done or refused; never carries a secret."""

    at: int
    actor: str
    action: str
    subject: str
    outcome: str
    detail: dict[str, Any] = field(default_factory=dict)


class Label(Struct, frozen=True):
    """What a person said of an asset in a span of time: what the detector learned from, and a trainer may."""

    at: int  # when it was said
    verdict: Verdict
    since: int
    until: int
    by: str = ""
    alarm: str = ""  # the alarm's id
    condition: str = ANOMALY
    cause: str = ""  # the channel that weighed most


class Device(Struct, frozen=True):
    """What is known of the device behind an asset: retained until it is forgotten. The asset's path never changes; the
    name may."""

    at: int  # when one of these facts last changed
    name: str  # as a person, else the device itself, calls it
    source: str = ""  # dialect or connector that brought it
    identity: str = ""  # by which the source knows it: an address, a serial number
    maker: str = ""
    model: str = ""
    version: str = ""  # of its firmware
    units: dict[str, str] = field(default_factory=dict)  # point -> UCUM code; empty: a number without a unit
    settable: list[str] = field(default_factory=list)  # points that can be written
    available: bool | None = None  # None: it does not say
    ignored: bool = False  # a person does not want its readings
    trouble: str = ""  # what is wrong with what it sends, and the remedy


Event = Reading | Block | Score | Alarm | State | Command | Audit | Label | Device

EVENTS: dict[Kind, type[Event]] = {
    Kind.READING: Reading,
    Kind.BLOCK: Block,
    Kind.SCORE: Score,
    Kind.ALARM: Alarm,
    Kind.STATE: State,
    Kind.COMMAND: Command,
    Kind.AUDIT: Audit,
    Kind.LABEL: Label,
    Kind.DEVICE: Device,
}
