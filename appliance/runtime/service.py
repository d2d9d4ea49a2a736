"""What the runtime runs: named services with a pulse."""

from collections.abc import Callable
from typing import Protocol


class Pulse(Protocol):
    """A service's line to the runtime."""

    def ready(self) -> None:
        """The service does its work from now on. Called once."""

    def beat(self) -> None:
        """The service is alive. Without a beat within the watchdog's time the process is restarted by systemd."""


class Service(Protocol):
    name: str

    async def run(self, pulse: Pulse) -> None:
        """Work until cancelled; clean up within a second. An error that leaves here ends the process."""


Clock = Callable[[], int]  # UTC nanoseconds
