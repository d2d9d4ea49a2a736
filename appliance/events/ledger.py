"""The books of a service: received = processed + queued + dropped, each drop under a reason.

Plain counting, no locks: one ledger belongs to one service on one event loop.
"""

from appliance.errors import EventError


class Ledger:
    """`received` counts messages handed over by the bus, `processed` those fully dealt with."""

    def __init__(self) -> None:
        self.received = 0
        self.processed = 0
        self.dropped: dict[str, int] = {}
        self.examples: dict[str, str] = {}  # reason -> the newest case, for a person

    @property
    def queued(self) -> int:
        return self.received - self.processed - sum(self.dropped.values())

    def drop(self, reason: str, example: str = "", count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        if example:
            self.examples[reason] = example[:200]

    def refuse(self, error: EventError, topic: str = "") -> None:
        """`topic` of the message, where the error does not name it itself."""
        named = topic and topic[:80] not in error.message
        self.drop(error.reason, f"{topic}: {error.message}" if named else error.message)
