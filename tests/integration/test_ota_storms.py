"""Whole updates through a storm: each answer of the server may be wrong in a way of its own."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from ota import campaign, manifest, wanted
from ota.campaign import Campaign, Choice, Device, Wave
from ota.delta.making import make
from ota.errors import FetchError, OtaError, TrustError
from ota.fetch import Course
from ota.manifest import Bundle
from ota.publish import goods
from ota.sources import Patience
from ota.trust import models_role
from ota.wanted import Habits
from tests.updates import DAY, FLEET, NOON, Box, Handler, Publisher, Server, model, serving

AT_ONCE = Course(rest=lambda seconds: None)
HASTY = Patience(connect_s=5.0, window_s=0.1, window_bytes=4096)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "workshop")


@pytest.fixture
def server(publisher: Publisher) -> Iterator[Server]:
    with serving(publisher.workshop.repository) as server:
        yield server


@pytest.fixture
def box(publisher: Publisher, tmp_path: Path) -> Box:
    return Box(tmp_path / "box", publisher.root)


# ---- one answer after the other -------------------------------------------------------------------------------------


def truncate(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    handler.give(data[: drawn.randint(begin, len(data))], begin, length=len(data) - begin)


def cut_short(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    """A length that fits what it gives, and not the file."""
    handler.give(data[: drawn.randint(begin, len(data))], begin)


def reset(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    truncate(handler, data, begin, drawn)
    handler.reset()


def flip(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    at = drawn.randrange(len(data))
    handler.give(data[:at] + bytes([data[at] ^ 1 << drawn.randrange(8)]) + data[at + 1 :], begin)


def add(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    handler.give(data + bytes(drawn.randint(1, 100_000)), begin)


def forget_ranges(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    handler.give(data)


def refuse(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    handler.send_error(drawn.choice((403, 404, 416, 429, 500, 503)))


def redirect(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def babble(handler: Handler, data: bytes, begin: int, drawn: random.Random) -> None:
    handler.wfile.write(drawn.randbytes(300))
    handler.close_connection = True


FAULTS = (truncate, cut_short, reset, flip, add, forget_ranges, refuse, redirect, babble)


def storm(seed: int, share: float) -> Callable[[Handler, str, bytes, int], bool]:
    drawn = random.Random(seed)

    def fault(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if drawn.random() >= share:
            return False
        drawn.choice(FAULTS)(handler, data, begin, drawn)
        return True

    return fault


@pytest.mark.parametrize("seed", range(6))
def test_an_update_gets_through_a_storm_and_only_the_right_one(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path, seed: int
) -> None:
    content = random.Random(1).randbytes(200_000)
    first = publisher.add(model(tmp_path, "1.0.0", content))
    second = publisher.add(model(tmp_path, "2.0.0", b"new" + content))
    goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
    publisher.publish()
    server.fault = storm(seed, 0.4)
    for asked in (first, second):
        supply, wrong = box.supply(server.repository()), 0
        while asked.bundle not in box.store.at_hand():
            try:
                supply.bring(asked, AT_ONCE)
                supply.verify(asked)
                box.store.add(supply.make(asked, AT_ONCE), asked.bundle)
            except OtaError:
                wrong += 1
                assert wrong < 300
        assert box.store.at_hand() <= {first.bundle, second.bundle}
        supply.clear(asked)
    assert len(server.asked) > 6  # at least what an update takes when all goes well


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("what", ["timestamp.json", "snapshot.json", "targets.json", f"{models_role(FLEET)}.json"])
def test_no_wrong_metadata_is_believed_or_kept(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path, what: str, fault: Callable[..., None]
) -> None:
    publisher.add(model(tmp_path, "1.0.0"))
    drawn = random.Random(f"{what} {fault.__name__}")

    def one(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if not path.endswith(what):
            return False
        fault(handler, data, begin, drawn)
        return True

    server.fault = one
    with suppress(FetchError, TrustError):  # a few faults are none to a file in one piece
        [offer] = box.supply(server.repository()).offers()[0]
        assert offer.content.version == "1.0.0"
    server.fault = lambda *_: False
    [offer] = box.supply(server.repository()).offers()[0]
    assert offer.content.version == "1.0.0"


@pytest.mark.parametrize("what", ["timestamp.json", "snapshot.json", ".bundle"])
def test_a_server_that_is_too_slow_is_given_up_wherever_it_is_slow(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path, what: str
) -> None:
    asked = publisher.add(model(tmp_path, "1.0.0"))

    def drip(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if not path.endswith(what):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for byte in data:
            if server.ended.wait(0.02):
                break
            handler.wfile.write(bytes([byte]))
        return True

    server.fault = drip
    with pytest.raises(FetchError):
        box.supply(server.repository(HASTY)).bring(asked, AT_ONCE)
    server.fault = lambda *_: False
    box.supply(server.repository()).bring(asked, AT_ONCE)


# ---- those who say what to take, and those who give it, disagree ----------------------------------------------------


def announced(publisher: Publisher, given: Campaign) -> None:
    """Signed as it should be, whatever it says: the publisher's own check is passed by."""
    content = manifest.Campaign("pump")
    (file := publisher.workshop.folder / "campaign").write_bytes(campaign.written(given))
    targets = publisher.targets()
    target = publisher.workshop.put(file, manifest.path_of(content, FLEET), manifest.custom(content))
    targets.targets[target.path] = target
    publisher.workshop.stage(models_role(FLEET), targets)
    publisher.publish()


@pytest.mark.parametrize("lie", ["another bundle", "another version", "no such model"])
def test_a_campaign_and_a_repository_that_disagree_change_nothing(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path, lie: str
) -> None:
    real = publisher.add(model(tmp_path, "2.0.0"))
    waves = (Wave("all", datetime.fromtimestamp(NOON - DAY, UTC)),)
    honest = Campaign("c", "s", "pump", "2.0.0", real.bundle, waves)
    changes = {
        "another bundle": {"bundle": "f" * 64},
        "another version": {"version": "3.0.0", "bundle": "f" * 64},
        "no such model": {"model": "valve"},
    }
    announced(publisher, replace(honest, **changes[lie]))
    assert not any(takes(box, server))
    publisher.now += 60
    announced(publisher, honest)
    assert [wish.bundle.version for wish in takes(box, server)] == ["2.0.0"]


def takes(box: Box, server: Server) -> list[wanted.Wish]:
    """What a box with version 1.0.0 takes by itself."""
    supply = box.supply(server.repository())
    offers, problems = supply.offers()
    assert problems == []
    bundles = [offer.content for offer in offers if isinstance(offer.content, Bundle)]
    said = [
        campaign.read(supply.read(offer, campaign.LIMIT))
        for offer in offers
        if isinstance(offer.content, manifest.Campaign)
    ]
    now = datetime.fromtimestamp(NOON, UTC)
    found = wanted.wishes(bundles, {"pump": "1.0.0"}, said, Habits(Device("box-1", {})), now)
    return [wish for wish in found if wish.decision.choice is Choice.TAKE]


def test_an_older_version_is_not_taken_though_a_campaign_says_so(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    old = publisher.add(model(tmp_path, "0.9.0"))
    waves = (Wave("all", datetime.fromtimestamp(NOON - DAY, UTC)),)
    announced(publisher, Campaign("c", "s", "pump", "0.9.0", old.bundle, waves))
    assert takes(box, server) == []
