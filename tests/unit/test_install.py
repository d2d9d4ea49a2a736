"""Installing a model: every step may be the last of a process, and the next one ends what it began."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota import install
from ota.errors import FetchError, ManifestError
from ota.install import Book, InstallError, NotNowError, Order, Step
from ota.installer import Installer, Journal, Parts, Ruling

SECOND = 1_000_000_000
OLD, NEW, NEWER = ("0" * 64, "a" * 64, "b" * 64)
STEPS = [
    "queued",
    "downloading",
    "verifying",
    "reconstructing",
    "compiling",
    "shadow",
    "promoted",
    "confirmed",
]


class KilledError(BaseException):
    """The process ends here."""


class World:
    """What outlives a process: the journal's file, the bundles that were kept, the name that points to one. Each effect
    has a moment before and one after it, and at any of them the process may be killed."""

    def __init__(self, cuts: list[int] | None = None) -> None:
        self.cuts = list(cuts or [])  # moments between two kills
        self.moments = 0
        self.file = b""
        self.kept: set[str] = {OLD}
        self.running = OLD
        self.staged: set[str] = set()
        self.reviews = {"shadow": 0, "promoted": 0}
        self.rulings: dict[str, Ruling] = {}
        self.raises: dict[str, Exception] = {}
        self.used: list[tuple[str, Step]] = []

    def effect(self, work: Callable[[], None]) -> None:
        self.moment()
        work()
        self.moment()

    def moment(self) -> None:
        self.moments += 1
        if self.cuts:
            self.cuts[0] -= 1
            if self.cuts[0] < 0:
                self.cuts.pop(0)
                raise KilledError

    def trouble(self, step: str) -> None:
        if step in self.raises:
            raise self.raises[step]


class MemoryJournal(Journal):
    def __init__(self, world: World) -> None:
        self.world = world

    def read(self) -> Book:
        return install.decode(self.world.file) if self.world.file else Book()

    def write(self, book: Book) -> None:
        data = install.encode(book)
        self.world.effect(lambda: setattr(self.world, "file", data))


class Fake:
    """All parts at once, upon a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def bring(self, order: Order) -> None:
        self.world.trouble("downloading")
        self.world.effect(lambda: self.world.staged.add(order.bundle))

    def verify(self, order: Order) -> None:
        self.world.trouble("verifying")
        assert order.bundle in self.world.staged

    def clear(self, order: Order) -> None:
        self.world.effect(lambda: self.world.staged.discard(order.bundle))

    def make(self, order: Order) -> Path:
        self.world.trouble("reconstructing")
        self.world.effect(lambda: self.world.staged.add(order.bundle))
        return Path(order.bundle)

    def keep(self, order: Order, folder: Path) -> None:
        assert order.bundle in self.world.staged
        self.world.effect(lambda: self.world.kept.add(order.bundle))

    def current(self, name: str) -> str:
        return self.world.running

    def use(self, order: Order, bundle: str) -> None:
        step = install.decode(self.world.file).waiting[0].step
        assert bundle in self.world.kept
        self.world.used.append((bundle, step))
        self.world.effect(lambda: setattr(self.world, "running", bundle))

    def compile(self, order: Order) -> None:
        self.world.trouble("compiling")
        self.world.moment()

    def shadow(self, order: Order, since: int, now: int) -> Ruling | None:
        self.world.trouble("shadow")
        assert self.world.running == OLD
        return self._review("shadow")

    def watch(self, order: Order, since: int, now: int) -> Ruling | None:
        assert self.world.running == order.bundle
        return self._review("promoted")

    def end(self, order: Order) -> None:
        self.world.moment()

    def _review(self, step: str) -> Ruling | None:
        self.world.moment()
        self.world.reviews[step] += 1
        return None if self.world.reviews[step] < 2 else self.world.rulings.get(step, Ruling(True, "", {"looks": 2}))


def order(bundle: str = NEW, version: str = "2.0.0") -> Order:
    return Order(f"id-{bundle[0]}", "pump", version, bundle)


def begun(world: World) -> Installer:
    fake = Fake(world)
    return Installer(MemoryJournal(world), Parts(fake, fake, fake, fake, fake))


def played(world: World, bundles: tuple[str, ...] = (NEW,)) -> Installer:
    """Processes, one after the other, until there is nothing left to do."""
    now, wanted = 0, list(bundles)
    for _ in range(400):
        try:
            installer = begun(world)
            while wanted:
                installer.ask(order(wanted[0]), now)
                wanted.pop(0)
            while installer.book.active:
                before = installer.book.active.step
                if before is not Step.PROMOTED:
                    assert world.running == OLD or installer.book.history
                now += 10_000 * SECOND
                installer.step(now)
            return installer
        except KilledError:
            if world.file and wanted:  # what was asked for and written down is not asked for again
                known = {one.order.bundle for one in install.decode(world.file).waiting}
                wanted = [bundle for bundle in wanted if bundle not in known]
    raise AssertionError("it did not end")


def trail(installer: Installer, place: int = 0) -> list[str]:
    return [stage.step.value for stage in installer.book.history[place].trail]


def test_all_steps_in_their_order() -> None:
    world = World()
    installer = played(world)
    assert trail(installer) == STEPS
    assert world.running == NEW
    assert world.staged == set()
    assert world.used == [(NEW, Step.PROMOTED)]
    [ended] = installer.book.history
    assert ended.before == OLD
    assert ended.figures == {"shadow": {"looks": 2}, "promoted": {"looks": 2}}


def test_any_moment_may_be_the_last() -> None:
    whole = World()
    played(whole)
    for cut in range(whole.moments + 1):
        world = World([cut])
        installer = played(world)
        assert trail(installer) == STEPS, cut
        assert world.running == NEW
        assert {step for _, step in world.used} == {Step.PROMOTED}


@given(
    cuts=st.lists(st.integers(0, 25), max_size=30),
    shadow=st.booleans(),
    watch=st.booleans(),
    several=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_killed_again_and_again(cuts: list[int], shadow: bool, watch: bool, several: bool) -> None:
    world = World(cuts)
    world.rulings = {"shadow": Ruling(shadow, "worse in shadow", {}), "promoted": Ruling(watch, "worse later", {})}
    bundles = (NEW, NEWER) if several and not (shadow and watch) else (NEW,)
    installer = played(world, bundles)
    ends = [one.step for one in installer.book.history]
    expected = Step.CONFIRMED if shadow and watch else Step.ROLLED_BACK if shadow else Step.REFUSED
    assert ends == [expected] * len(bundles)
    assert world.running == (NEW if expected is Step.CONFIRMED else OLD)
    assert set(installer.book.refused) == (set() if expected is Step.CONFIRMED else set(bundles))
    if not shadow:
        assert world.used == []


@pytest.mark.parametrize("step", STEPS[1:6])
def test_what_is_wrong_with_a_bundle_refuses_it_for_good(step: str) -> None:
    world = World()
    world.raises[step] = ManifestError("its weights are no numbers", "Train it again.")
    installer = played(world)
    assert trail(installer) == [*STEPS[: STEPS.index(step) + 1], "refused"]
    assert installer.book.refused == {NEW: "refused: its weights are no numbers. Train it again."}
    assert world.used == []
    assert world.staged == set()
    with pytest.raises(InstallError, match="refused before: refused: its weights"):
        begun(world).ask(order(), 0)
    world.raises.clear()
    begun(world).ask(order(), 0, again=True)
    assert trail(played(world, ()), 1) == STEPS


@pytest.mark.parametrize(("step", "error"), [("downloading", FetchError("cut off")), ("shadow", NotNowError("away"))])
def test_what_cannot_be_done_now_is_tried_again_ever_later(step: str, error: Exception) -> None:
    world = World()
    world.raises[step] = error
    installer = begun(world)
    installer.ask(order(), 0)
    now, attempts = 0, []
    while now < 40_000 * SECOND:
        before = installer.book.active
        assert before is not None
        if installer.step(now) and before.step == step:
            attempts.append(now // SECOND)
        now += SECOND
    pauses = [later - sooner for sooner, later in pairwise(attempts)]
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses == sorted(pauses)
    assert max(pauses) == 3600
    assert installer.book.active is not None
    assert installer.book.active.reason == str(error)
    world.raises.clear()
    assert trail(played(world, ())) == STEPS
    assert installer.book.refused == {}


def test_a_clock_that_is_put_back_holds_nothing_up() -> None:
    world, year = World(), 365 * 86_400 * SECOND
    world.raises["downloading"] = FetchError("cut off")
    installer = begun(world)
    installer.ask(order(), year)
    assert [installer.step(year) for _ in range(3)] == [True, True, False]
    assert installer.step(0)


def test_a_second_one_waits_and_the_same_one_is_asked_for_once() -> None:
    installer = begun(World())
    for bundle in (NEW, NEWER, NEW):
        installer.ask(order(bundle), 0)
    assert [one.order.bundle for one in installer.book.waiting] == [NEW, NEWER]
    while installer.book.active is not None and installer.book.active.order.bundle == NEW:
        assert installer.book.waiting[1].step is Step.QUEUED
        installer.step(0)
    assert installer.book.active is not None
    assert installer.book.active.order.bundle == NEWER


def test_no_more_than_some_wait() -> None:
    book = Book()
    for number in range(install.MAX_WAITING):
        book = install.ask(book, order(f"{number:064x}"), 0)
    with pytest.raises(InstallError, match="wait already"):
        install.ask(book, order(), 0)


def test_what_is_in_use_is_not_installed_again() -> None:
    with pytest.raises(InstallError, match="in use already"):
        begun(World()).ask(order(OLD), 0)


def test_pausing_begins_nothing_and_goes_on_watching() -> None:
    world = World()
    installer = begun(world)
    installer.ask(order(), 0)
    installer.step(0)
    installer.pause(True)
    assert not installer.step(0)
    assert not begun(world).step(0)
    installer.pause(False)
    while installer.book.active is not None and installer.book.active.step is not Step.PROMOTED:
        assert installer.step(0)
    installer.pause(True)
    while installer.book.active is not None:
        assert installer.step(0)
    assert trail(installer) == STEPS


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_person_may_undo_it_at_any_time(steps: int) -> None:
    world = World()
    installer = begun(world)
    installer.ask(order(), 0)
    for _ in range(steps):
        installer.step(0)
    installer.go_back("anna: not this one", 0)
    installer = played(world, ())
    [ended] = installer.book.history
    assert ended.step in (Step.REFUSED, Step.ROLLED_BACK)
    assert ended.reason == "anna: not this one"
    assert world.running == OLD
    assert world.staged == set()
    assert list(installer.book.refused) == [NEW]


def test_what_was_confirmed_is_undone_as_long_as_it_runs() -> None:
    world = World()
    installer = played(world)
    installer.go_back("anna: it smells", 5)
    assert trail(played(world, ()))[-2:] == ["promoted", "rolled-back"]
    assert world.running == OLD
    with pytest.raises(InstallError, match="no model that was installed here runs"):
        begun(world).go_back("again", 6)


def test_a_model_chosen_by_hand_meanwhile_stays() -> None:
    world = World()
    installer = begun(world)
    installer.ask(order(), 0)
    while installer.book.active is not None and not installer.book.active.switched:
        installer.step(0)
    world.running = NEWER
    installer.step(0)
    [ended] = installer.book.history
    assert ended.step is Step.ROLLED_BACK
    assert "by hand" in ended.reason
    assert world.running == NEWER
    assert installer.book.refused == {}


def test_a_journal_survives_and_a_damaged_one_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "installations.json"
    assert Journal(path).read() == Book()
    book = install.ask(Book(), order(), 7)
    Journal(path).write(book)
    assert Journal(path).read() == book
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert Journal(path).read() == Book()
    assert [one.name for one in path.parent.iterdir()] == ["installations.damaged"]


@given(st.binary(max_size=200))
def test_whatever_bytes_are_a_book_or_told_as_none(data: bytes) -> None:
    try:
        book = install.decode(data)
    except ValueError:
        return
    assert install.decode(install.encode(book)) == book
