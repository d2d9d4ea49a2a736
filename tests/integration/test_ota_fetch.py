"""Downloads from a web server that misbehaves, and the routes of a supply over a good one."""

import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ota import bundle, fetch, manifest
from ota.errors import DamagedError, FetchError, MissingError, SpaceError
from ota.fetch import MARK_BYTES, Course, Wanted
from ota.install import NotNowError
from ota.publish import goods
from ota.sources import Folder, Patience, Web
from ota.trust import models_role
from tests.updates import FLEET, PATIENT, Box, Handler, Publisher, Server, model, serving

DATA = random.Random(7).randbytes(3 << 20)
WANTED = Wanted(hashlib.sha256(DATA).hexdigest(), len(DATA))
AT_ONCE = Course(rest=lambda seconds: None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "file").write_bytes(DATA)
    with serving(tmp_path / "web") as server:
        yield server


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


def get(server: Server, staging: Path, patience: Patience = PATIENT, wanted: Wanted = WANTED) -> Path:
    return fetch.download(Web(server.url, patience), "file", wanted, staging, AT_ONCE)


def whole(ready: Path) -> bool:
    return ready.read_bytes() == DATA and [path.name for path in ready.parent.iterdir()] == [WANTED.digest]


def test_a_good_server(server: Server, staging: Path) -> None:
    assert whole(get(server, staging))
    get(server, staging)
    assert len(server.asked) == 1


def test_a_server_that_cuts_off_is_asked_for_the_rest(server: Server, staging: Path) -> None:
    def cut(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        handler.give(data[: begin + 700_000], begin, length=len(data) - begin)
        return True

    server.fault = cut
    assert whole(get(server, staging))
    assert [asked for _, asked in server.asked][:2] == ["", "bytes=700000-"]


def test_a_server_that_resets(server: Server, staging: Path) -> None:
    def reset(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if len(server.asked) > 5:
            return False
        handler.give(data[: begin + 300_000], begin, length=len(data) - begin)
        handler.reset()
        return True

    server.fault = reset
    assert whole(get(server, staging))
    assert len({asked for _, asked in server.asked}) > 1


def test_a_server_that_only_resets(server: Server, staging: Path) -> None:
    server.fault = lambda handler, *_: handler.reset() is None
    with pytest.raises(FetchError):
        get(server, staging)
    assert len(server.asked) == 3


def test_a_server_without_ranges_begins_again(server: Server, staging: Path) -> None:
    def half(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if begin:
            handler.give(data)
        else:
            handler.give(data[: 1 << 20], length=len(data))
        return True

    server.fault = half
    assert whole(get(server, staging))
    assert server.asked[0][1] == ""


@pytest.mark.parametrize("said", ["bytes 5-10/20", "nonsense", "bytes 99999999999999999-1/2"])
def test_a_server_that_lies_about_the_range(server: Server, staging: Path, said: str) -> None:
    def lie(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if not begin:
            handler.give(data[: 1 << 20], length=len(data))
            return True
        handler.send_response(206)
        handler.send_header("Content-Range", said)
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"evil")
        return True

    server.fault = lie
    with pytest.raises(FetchError, match="206"):
        get(server, staging)
    server.fault = lambda *_: False
    assert whole(get(server, staging))


def test_a_server_that_lies_about_the_bytes(server: Server, staging: Path) -> None:
    server.fault = lambda handler, path, data, begin: handler.give(b"\0" * len(data), begin) is None
    with pytest.raises(DamagedError):
        get(server, staging)
    assert len(server.asked) == 2
    server.fault = lambda *_: False
    assert whole(get(server, staging))


def test_a_server_that_gives_more_than_was_signed(server: Server, staging: Path) -> None:
    server.fault = lambda handler, path, data, begin: handler.give(data + b"more", begin) is None
    assert whole(get(server, staging))


def test_a_server_without_an_end(server: Server, staging: Path) -> None:
    server.fault = lambda handler, path, data, begin: handler.endless(b"x" * 65_536) is None
    with pytest.raises(DamagedError):
        get(server, staging)
    assert sum(path.stat().st_size for path in staging.iterdir()) <= len(DATA)


@pytest.mark.parametrize("where", ["the answer", "a header", "a chunk's size", "the content"])
def test_a_server_that_drips_is_given_up(server: Server, staging: Path, where: str) -> None:
    """A byte now and then, each of which would begin a socket's time limit anew."""
    begins = {
        "the answer": b"",
        "a header": b"HTTP/1.1 200 OK\r\nX: ",
        "a chunk's size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0",
        "the content": b"HTTP/1.1 200 OK\r\nContent-Length: 3145728\r\n\r\n",
    }

    def drip(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        handler.wfile.write(begins[where])
        while not server.ended.wait(0.01):
            handler.wfile.write(b"0")
        return True

    server.fault = drip
    with pytest.raises(FetchError):
        get(server, staging, Patience(window_s=0.2))


def test_a_server_that_says_nothing(server: Server, staging: Path) -> None:
    server.fault = lambda *_: server.ended.wait()
    with pytest.raises(FetchError):
        get(server, staging, Patience(window_s=0.2))


def test_a_server_that_gives_one_byte_each_time(server: Server, staging: Path) -> None:
    def one(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        handler.give(data[: begin + 1], begin, length=len(data) - begin)
        return True

    server.fault = one
    with pytest.raises(FetchError):
        get(server, staging)
    assert len(server.asked) < 20


@pytest.mark.parametrize("status", [301, 404, 403, 500, 503])
def test_a_server_that_does_not_give_it(server: Server, staging: Path, status: int) -> None:
    def refuse(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        handler.send_response(status)
        handler.send_header("Location", "/file")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    server.fault = refuse
    with pytest.raises(MissingError if status in (403, 404) else FetchError):
        get(server, staging)


def test_no_server(staging: Path) -> None:
    with pytest.raises(FetchError):
        fetch.download(Web("http://127.0.0.1:1"), "file", WANTED, staging, AT_ONCE)


def test_room_is_asked_for_before_anything_else(server: Server, staging: Path) -> None:
    with pytest.raises(SpaceError):
        get(server, staging, wanted=Wanted(WANTED.digest, 1 << 55))
    assert server.asked == []


def test_what_arrived_survives_who_stops(server: Server, staging: Path) -> None:
    class StopError(Exception):
        pass

    def stop(arrived: int, length: int) -> None:
        if arrived > length // 2:
            raise StopError

    with pytest.raises(StopError):
        fetch.download(Web(server.url), "file", WANTED, staging, Course(progress=stop))
    assert fetch.arrived(staging, WANTED) > WANTED.length // 2
    assert whole(get(server, staging))
    assert server.asked[-1][1].startswith("bytes=1")


def test_zeros_at_the_end_after_a_power_cut_are_not_believed(server: Server, staging: Path) -> None:
    """The file had grown, its content was never written, and no mark says otherwise."""
    staging.mkdir()
    (staging / f"{WANTED.digest}.part").write_bytes(DATA[:1000] + b"\0" * MARK_BYTES)
    assert fetch.arrived(staging, WANTED) == 0
    assert whole(get(server, staging))


def test_a_part_that_rotted_costs_one_more_download(server: Server, staging: Path) -> None:
    staging.mkdir()
    (staging / f"{WANTED.digest}.part").write_bytes(b"\0" * 500_000)
    (staging / f"{WANTED.digest}.part.mark").write_bytes(b"500000")
    assert whole(get(server, staging))
    assert [asked for _, asked in server.asked] == ["bytes=500000-", ""]


def test_a_folder_is_a_source_like_any_other(server: Server, staging: Path) -> None:
    assert whole(fetch.download(Folder(server.root), "file", WANTED, staging, AT_ONCE))


# ---- routes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "workshop")


def installed(box: Box, server: Server, wanted: goods.Bundle) -> str:
    """One update, with the codec itself; gives the kind of route it took."""
    supply = box.supply(server.repository())
    kind = supply.route(wanted.bundle, supply.offers()[0]).kind
    supply.bring(wanted, AT_ONCE)
    supply.verify(wanted)
    box.store.add(supply.make(wanted), wanted.bundle)
    box.store.use(wanted.name, wanted.bundle)
    supply.clear(wanted)
    assert bundle.digest(box.store.root / wanted.bundle) == wanted.bundle
    assert list((box.folder / "updates" / "files").iterdir()) == []
    return kind


def test_whole_then_delta_then_a_chain_of_deltas(publisher: Publisher, tmp_path: Path) -> None:
    from ota.delta.making import make

    content = bytearray(random.Random(1).randbytes(200_000))
    versions = []
    box = Box(tmp_path / "box", publisher.root)
    with serving(publisher.workshop.repository) as server:
        for number in range(1, 4):
            content[number * 1000 : number * 1000 + 100] = bytes(100)
            versions.append(publisher.add(model(tmp_path, f"1.{number}.0", bytes(content))))
            if number == 1:
                assert installed(box, server, versions[0]) == "whole"
                continue
            [made] = goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
            assert made.kept
            assert made.patch_bytes < made.whole_bytes / 10
            for target in publisher.workshop.targets(models_role(FLEET)).targets.values():
                told = manifest.read(target.custom)
                assert not isinstance(told, manifest.Delta) or 1 << 24 < told.memory_bytes < 1 << 28
            publisher.publish()
        assert installed(box, server, versions[2]) == "chain of deltas"
        assert box.store.target("pump", "previous") == versions[0].bundle
        assert installed(box, server, versions[1]) == "delta"
        shutil.rmtree(box.folder / "models")
        assert installed(box, server, versions[2]) == "whole"


def test_a_route_that_was_decided_on_goes_on_without_the_network(publisher: Publisher, tmp_path: Path) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    box = Box(tmp_path / "box", publisher.root)
    with serving(publisher.workshop.repository) as server:
        box.supply(server.repository()).bring(wanted, AT_ONCE)
        repository = server.repository()
    supply = box.supply(repository)
    supply.bring(wanted, AT_ONCE)
    supply.verify(wanted)
    assert box.store.add(supply.make(wanted), wanted.bundle).is_dir()


def test_a_budget_is_kept(publisher: Publisher, tmp_path: Path) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    box = Box(tmp_path / "box", publisher.root)
    with serving(publisher.workshop.repository) as server:
        with pytest.raises(SpaceError, match="may be used"):
            box.supply(server.repository(), budget=1000).bring(wanted, AT_ONCE)
        assert not any(path.endswith(".bundle") for path, _ in server.asked)


def test_what_is_not_offered_cannot_be_had(publisher: Publisher, tmp_path: Path) -> None:
    box = Box(tmp_path / "box", publisher.root)
    with serving(publisher.workshop.repository) as server, pytest.raises(MissingError):
        box.supply(server.repository()).route("0" * 64, [])


def test_what_arrived_by_a_way_that_was_given_up_is_removed(publisher: Publisher, tmp_path: Path) -> None:
    """A delta is published while the whole is on its way."""
    from ota.delta.making import make

    content = bytearray(random.Random(1).randbytes(400_000))
    box = Box(tmp_path / "box", publisher.root)
    with serving(publisher.workshop.repository) as server:
        assert installed(box, server, publisher.add(model(tmp_path, "1.1.0", bytes(content)))) == "whole"
        content[1000:1100] = bytes(100)
        wanted = publisher.add(model(tmp_path, "1.2.0", bytes(content)))
        supply = box.supply(server.repository())

        def stop(arrived: int, length: int) -> None:
            raise NotNowError("enough")

        with pytest.raises(NotNowError):
            supply.bring(wanted, Course(stop))
        assert supply.arrived(wanted)[0] > 0
        goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
        publisher.publish()
        supply.bring(wanted, AT_ONCE)
        [file] = (box.folder / "updates" / "files").iterdir()
        assert file.stat().st_size == supply.arrived(wanted)[1] < 100_000
        assert bundle.digest(supply.make(wanted)) == wanted.bundle
        assert supply.made(wanted)[0] == supply.made(wanted)[1] > 400_000
        supply.clear(wanted)
        assert [path for path in (box.folder / "updates").rglob("*") if path.is_file()] == []
