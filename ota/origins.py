"""Where installations get their bundles from: what is on this box already, and repositories, several in order.

    https://updates.example/plant-a     static files on the web
    /media/*/*                          sticks, wherever one is plugged in: `millwright/` on it holds a repository
    /srv/repository                     a folder with a repository, as the web server shows it

What an order's `source` is: a path, for a bundle on this box; `repository`, for one of the configured places; or
`repository:PLACE`, for a place that is asked before them, such as a stick that somebody named.

What is wrong with a repository speaks against no bundle: it is told as NotNowError, and tried again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path

from ota import courier, durable
from ota.errors import DamagedError, FetchError, TrustError
from ota.fetch import Course
from ota.install import NotNowError, Order, Step
from ota.local import Local
from ota.sources import GoesOn, Repository
from ota.supply import Places, Supply

REPOSITORY = "repository"
MAX_PLACES = 64
_SLICE_S = 0.2

Web = Callable[[str, GoesOn], Repository]  # of an address on the web


class Origins:
    """Fetch and Reconstruct of `ota.installer`. `supply` makes one of the places that it is given."""

    def __init__(
        self, addresses: Sequence[str], local: Local, supply: Callable[[Places], Supply], web: Web, goes_on: GoesOn
    ) -> None:
        self._addresses, self._local, self._make, self._web = tuple(addresses), local, supply, web
        self._goes_on = goes_on

    # ---- places -----------------------------------------------------------------------------------------------------

    def supply(self, first: str = "") -> Supply:
        """Of the configured places; `first` is asked before them. OtaError where it has no repository."""
        if first and not any(True for _ in self._at(first, _always)):
            raise FetchError(
                f"{first}: there is no repository on it", "Prepare it: millwright-publish usb WORKSHOP STICK --key KEY"
            )
        return self._make(lambda: self._places(first, _always))

    def sticks(self, orders: Iterable[Order] = ()) -> list[Path]:
        """Those that are plugged in at this moment: of the configured places, and of what was asked for from one."""
        addresses = dict.fromkeys([*self._addresses, *filter(None, map(_place, orders))])
        return [path for address in addresses for path in _paths(address) if _within(path) and _is_stick(path)]

    def _places(self, first: str, goes_on: GoesOn) -> list[Repository]:
        addresses = dict.fromkeys([*([first] if first else []), *self._addresses])
        return [place for address in addresses for place in self._at(address, goes_on)][:MAX_PLACES]

    def _at(self, address: str, goes_on: GoesOn) -> Iterator[Repository]:
        if not address.startswith("/"):
            yield self._web(address, goes_on)
            return
        for path in _paths(address):
            if (found := _within(path)) is not None:
                yield found

    # ---- Fetch and Reconstruct --------------------------------------------------------------------------------------

    def bring(self, order: Order) -> None:
        if not _asks_repository(order):
            self._local.bring(order)
            return
        with _about_the_box(order):
            self._of(order).bring(order, self._course)

    def verify(self, order: Order) -> None:
        if not _asks_repository(order):
            self._local.verify(order)
            return
        with _about_the_box(order):
            supply = self._of(order)
            try:
                supply.verify(order)
            except DamagedError:  # what was damaged on the disk is gone: it is fetched once more
                supply.bring(order, self._course)
                supply.verify(order)

    def make(self, order: Order) -> Path:
        if not _asks_repository(order):
            return self._local.make(order)
        with _about_the_box(order):
            supply = self._of(order)
            supply.bring(order, self._course)  # nothing to do, unless somebody took the files away
            return supply.make(order, self._course)

    def clear(self, order: Order) -> None:
        if not _asks_repository(order):
            self._local.clear(order)
            return
        with _about_the_box(order):
            self._make(list).clear(order)

    def progress(self, order: Order, step: Step) -> tuple[int, int] | None:
        """Bytes done, and bytes in all, of a step that can be measured."""
        if not _asks_repository(order):
            return None
        supply = self._make(list)
        if step is Step.DOWNLOADING:
            return supply.arrived(order)
        return supply.made(order) if step is Step.RECONSTRUCTING else None

    def _of(self, order: Order) -> Supply:
        return self._make(lambda: self._places(_place(order), self._goes_on))

    @property
    def _course(self) -> Course:
        return Course(lambda arrived, length: self._goes_on(), self._rest)

    def _rest(self, seconds: float) -> None:
        """In slices, so that whoever wants it to stop is heard."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._goes_on()
            time.sleep(min(left, _SLICE_S))


def source(place: str = "") -> str:
    """Of an order from a repository."""
    return f"{REPOSITORY}:{place}" if place else REPOSITORY


def _place(order: Order) -> str:
    """That somebody named; empty where nobody did."""
    return order.source.partition(":")[2] if _asks_repository(order) else ""


def _always() -> None:
    """A look is not stopped: it changes nothing."""


def _asks_repository(order: Order) -> bool:
    return order.source.partition(":")[0] == REPOSITORY


def _within(path: Path) -> Repository | None:
    """Of a stick, or of a folder as the web server shows it. One that cannot be read has none."""
    try:
        if (found := courier.repository(path)) is not None:
            return found
        return Repository.within(path, courier=False) if (path / "metadata").is_dir() else None
    except OSError:
        return None


def _is_stick(path: Path) -> bool:
    return (path / courier.FOLDER).is_dir()


def _paths(address: str) -> Iterable[Path]:
    """Of folders; none for an address on the web."""
    if not address.startswith("/"):
        return []
    try:
        return sorted(Path("/").glob(address.removeprefix("/"))) if has_magic(address) else [Path(address)]
    except OSError:
        return []  # it is being pulled out


@contextmanager
def _about_the_box(order: Order) -> Iterator[None]:
    """What speaks against the repository, or this box's disk, and not against the bundle."""
    try:
        yield
    except TrustError as error:
        raise NotNowError(error.message, error.remedy) from error
    except OSError as error:
        raise durable.unusable(Path(order.bundle[:12]), error) from error
