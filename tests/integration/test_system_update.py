"""`millwright update os`: a signed repository, a box of files, slots that behave as a boot loader does, kills."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from appliance.__main__ import main as millwright
from appliance.cli import reaching, systems
from appliance.config.load import load
from appliance.runtime import files
from hardware.links import Link
from hardware.slots.fake import FakeSlots
from ota.publish import systems as publishing
from ota.system import making, updater
from ota.system import release as releases
from tests.systems import Maker, root
from tests.updates import Publisher, Server, serving

NAME = "millwright-x86-64"
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the releases of these tests are for x86-64")


@dataclass
class Site:
    """A repository that is served, and a box that 1.1 runs on."""

    folder: Path
    server: Server
    publisher: Publisher
    maker: Maker
    slots: FakeSlots
    capsys: pytest.CaptureFixture[str]

    @property
    def box(self) -> Path:
        return self.folder / "box"

    @property
    def state(self) -> Path:
        return self.box / "state/os"

    def publish(
        self, version: str, changed: int, change: Callable[[releases.Release], releases.Release] = lambda one: one
    ) -> releases.Release:
        """`change`: what the maker of the release got wrong."""
        new = self.maker.split(self.folder / version, version, root(changed))
        old = making.Split(*(next((self.folder / "1.1").glob(one)) for one in ("*64.*.raw", "*verity*", "*.efi")))
        out = self.folder / "out"
        release = change(making.make(NAME, "x86-64", new, out, (old,), level=1))
        (out / f"{NAME}-{version}.image").write_bytes(releases.encode(release))
        publishing.add(self.publisher.workshop, out / f"{NAME}-{version}.image")
        self.publisher.publish()
        return release

    def run(self, *words: str) -> tuple[int, str]:
        self.capsys.readouterr()
        code = millwright(["--config", str(self.box / "box.toml"), "update", "os", *words])
        said = self.capsys.readouterr()
        return code, said.out + said.err

    def restart(self, broken: frozenset[str] = frozenset()) -> None:
        """And the health gate blesses what came up."""
        running = self.slots.boot(broken)
        lay_running(self.box, running, self.folder / running)

    def book(self) -> dict[str, object]:
        text = (self.state / "book.json").read_bytes().partition(b"\n")[2]
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    def rests(self) -> list[str]:
        return [
            str(path.relative_to(self.state)) for name in ("files", "staged") for path in (self.state / name).glob("*")
        ]


def lay_running(box: Path, version: str, parts: Path) -> None:
    """The files of a box as the system that runs shows them."""
    kernel = next(parts.glob("*.efi"))
    roothash = updater.kernels.parse(kernel.read_bytes()).roothash
    half = roothash[:32]
    own = "-".join((half[:8], half[8:12], half[12:16], half[16:20], half[20:]))
    for folder in ("proc", "etc", "boot/EFI/Linux", "dev/disk/by-partuuid"):
        (box / folder).mkdir(parents=True, exist_ok=True)
    (box / "proc/cmdline").write_text(f"ro roothash={roothash} panic=10\n")
    (box / "etc/os-release").write_text(f"IMAGE_ID=millwright\nIMAGE_VERSION={version}\n")
    partition = box / "dev/disk/by-partuuid" / own
    partition.write_bytes(next(parts.glob("*root-x86-64.*")).read_bytes() + b"what lies behind it" * 9999)
    for name in (f"millwright_{version}.efi", f"millwright_{version}+2-1.efi"):
        (box / "boot/EFI/Linux" / name).write_bytes(kernel.read_bytes())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    publisher = Publisher(tmp_path / "workshop", time.time())
    with serving(publisher.workshop.repository) as server:
        found = Site(tmp_path, server, publisher, Maker(), FakeSlots("1.1"), capsys)
        found.maker.split(tmp_path / "1.1", "1.1", root(1))
        lay_running(found.box, "1.1", tmp_path / "1.1")
        (tmp_path / "root.json").write_bytes(publisher.root)
        (found.box / "box.toml").write_text(
            f'[paths]\nstate = "{found.box}/state"\nrun = "{found.box}/run"\n'
            f'[update]\nsources = ["{server.url}"]\nfleet = "plant-a"\nroot = "{tmp_path}/root.json"\n'
        )
        monkeypatch.setattr(
            systems, "here", lambda config, document: systems.Box(config, document, found.slots, found.box)
        )
        yield found


def test_from_the_plan_to_the_commit(site: Site) -> None:
    site.publish("1.2", 2)
    code, plan = site.run("plan")
    assert code == 0, plan
    assert "1.1 -> 1.2" in plan
    assert "system by a difference, kernel by a difference" in plan
    assert "1.1 stays beside it" in plan
    assert not site.rests()
    code, said = site.run("apply")
    assert code == 0, said
    assert "1.2 is waiting: it is tried at the next restart" in said
    assert site.rests() == []
    site.restart()
    assert "1.2 is trying" in site.run("settle")[1]
    site.slots.bless()
    assert "Nothing older than 1.2 is taken." in site.run("settle")[1]
    assert site.book()["committed"] == "1.2"
    whole = {path for path, _ in site.server.asked if path.startswith("targets/os/parts/")}
    assert sum((site.folder / "out/parts" / path.rpartition("/")[2]).stat().st_size for path in whole) < 250_000


def test_what_is_staged_is_what_the_builder_split(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish("1.2", 2)
    found: dict[str, bytes] = {}

    def install(version: str, folder: Path) -> None:
        found.update({path.name: path.read_bytes() for path in folder.iterdir()})

    monkeypatch.setattr(site.slots, "install", install)
    site.run("apply")
    assert found == {path.name: path.read_bytes() for path in (site.folder / "1.2").iterdir()}


def test_a_version_that_does_not_start_is_given_up_and_not_tried_again(site: Site) -> None:
    site.publish("1.2", 2)
    site.run("apply")
    site.restart(broken=frozenset({"1.2"}))
    assert site.slots.standing().running == "1.1"
    said = site.run("settle")[1]
    assert "The last one, 1.2, was rolled-back: no start of it came through." in said
    code, plan = site.run("apply")
    assert code == 1
    assert "1.2 was given up here" in plan
    assert "higher version" in plan


def test_a_version_that_was_given_up_is_tried_once_more_where_somebody_asks(site: Site) -> None:
    site.publish("1.2", 2)
    site.run("apply")
    site.restart(broken=frozenset({"1.2"}))
    assert site.run("apply")[0] == 1
    code, said = site.run("apply", "--again")
    assert code == 0, said
    site.restart()
    site.slots.bless()
    site.run("settle")
    assert site.book()["committed"] == "1.2"


def test_the_links_of_the_box_are_noted_before_it_is_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[reaching.Note] = []

    def install(version: str, folder: Path) -> None:
        raw = files.read_sealed(site.box / "state" / reaching.NOTE, reaching.MAX_NOTE)
        noted.append(msgspec.json.decode(raw or b"", type=reaching.Note))

    site.publish("1.2", 2)
    port = site.box / "sys/class/net/enp1s0"
    (port / "device").mkdir(parents=True)
    for name, text in {"address": "a8:b8:e0:05:1c:4d", "addr_assign_type": "0", "carrier": "1"}.items():
        (port / name).write_text(f"{text}\n")
    monkeypatch.setattr(site.slots, "install", install)
    site.run("apply")
    assert noted == [reaching.Note("1.2", (Link("a8:b8:e0:05:1c:4d", "enp1s0", carrier=True, leads_out=False),))]
    assert (site.state / "links.json").stat().st_mode & 0o777 == 0o600


def test_a_downgrade_is_refused_after_a_commit(site: Site) -> None:
    site.publish("1.2", 2)
    site.publish("1.3", 3)
    site.run("apply", "1.3")
    site.restart()
    site.slots.bless()
    site.run("settle")
    code, plan = site.run("apply", "1.2")
    assert code == 1
    assert "1.2 is older than 1.3, which was committed" in plan
    assert site.run("rollback")[0] == 1


def test_nobody_need_wait_for_a_restart_to_change_their_mind(site: Site) -> None:
    site.publish("1.2", 2)
    site.run("apply")
    assert "1.2 is given up." in site.run("rollback")[1]
    assert [one.version for one in site.slots.standing().entries] == ["1.1"]
    assert site.run("apply")[0] == 0


def test_what_runs_and_is_not_wanted_goes_back(site: Site) -> None:
    site.publish("1.2", 2)
    site.run("apply")
    site.restart()
    said = site.run("rollback")[1]
    assert "1.2 is given up. It runs still" in said
    assert site.slots.boot() == "1.1"


def test_a_server_that_gives_other_bytes_than_the_signed_ones(site: Site) -> None:
    way = site.publish("1.2", 2).root.ways[1]
    site.publisher.workshop.part(way.place).write_bytes(b"x" * way.length)
    code, said = site.run("apply")
    assert code == 1
    assert "not the signed ones" in said
    assert site.book()["refused"] == {}
    assert site.slots.standing().complete == {"1.1"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one: replace(one, boot=replace(one.boot, pcr11={"1": "0" * 64})), "other values of PCR 11"),
        (lambda one: replace(one, boot=replace(one.boot, signers=("0" * 64,))), "other signers"),
        (lambda one: replace(one, tree=replace(one.tree, roothash="0" * 64)), "the root's hash is not"),
        (lambda one: replace(one, root=replace(one.root, sha256="0" * 64)), "not what was signed"),
    ],
)
def test_a_release_that_is_not_what_it_says_is_refused(
    site: Site, change: Callable[[releases.Release], releases.Release], why: str
) -> None:
    site.publish("1.2", 2, change)
    code, said = site.run("apply")
    assert code == 1
    assert why in said
    assert list(site.book()["refused"]) == ["1.2"]  # type: ignore[call-overload]  # JSON
    assert site.slots.standing().complete == {"1.1"}
    assert site.rests() == []
    assert "was given up here" in site.run("plan")[1]


def test_a_difference_that_is_for_another_root_is_gone_around(site: Site) -> None:
    site.publish("1.2", 2)
    partition = next((site.box / "dev/disk/by-partuuid").iterdir())
    partition.write_bytes(b"rot" + partition.read_bytes()[3:])
    code, said = site.run("apply")
    assert code == 0, said
    assert "waiting" in said


def test_without_a_repository_or_keys(site: Site) -> None:
    code, said = site.run("plan", "9.9")
    assert code == 1
    assert "no repository has os/millwright-x86-64-9.9.image" in said
    (site.folder / "root.json").unlink()
    assert "no repository can be believed" in site.run("plan")[1]


def test_the_state_as_json(site: Site) -> None:
    site.publish("1.2", 2)
    found = json.loads(site.run("plan", "--json")[1])
    assert found["ok"]
    assert found["fetch_bytes"] < found["whole_bytes"] / 5
    assert json.loads(site.run("status", "--json")[1])["standing"]["running"] == "1.1"


@pytest.mark.parametrize("after", range(1, 60, 4))
def test_it_goes_on_after_it_was_cut_off(site: Site, after: int) -> None:
    """An OSError in place of the call that changes the disk, so that nothing that comes after it is done."""
    site.publish("1.2", 2)
    cut = Cut(after)
    sys.addaudithook(cut)
    try:
        cut.armed = True
        with_suppress(lambda: site.run("apply"))
    finally:
        cut.armed = False
    code, said = site.run("apply")
    assert code == 0, said
    assert site.slots.standing().complete == {"1.1", "1.2"}
    assert site.rests() == []
    site.restart()
    site.slots.bless()
    site.run("settle")
    assert site.book()["committed"] == "1.2"


class Cut:
    """Raises at the n-th change of the disk below a box, and at each one after it: a process that is dead writes
    nothing more."""

    def __init__(self, after: int) -> None:
        self.left, self.armed = after, False

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.armed or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            return
        writes = event != "open" or (isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR)))
        if writes and "/state/os" in str(args[0]):
            self.left -= 1
            if self.left <= 0:
                raise Killed


class Killed(BaseException):
    """Nobody catches it."""


def with_suppress(act: Callable[[], object]) -> None:
    try:
        act()
    except Killed:
        return


def test_the_guard_of_this_machine_is_quick_and_blesses_nothing(repository: Path) -> None:
    command = [sys.executable, "-m", "appliance", "update", "os", "guard", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode in (0, 1)
    assert json.loads(done.stdout)["bless"] == (done.returncode == 0)


def test_what_a_configuration_is_needed_for(site: Site) -> None:
    config, document = load(site.box / "box.toml")
    box = systems.Box(config, document, site.slots, site.box)
    assert box.name == NAME
    assert box.old_root.is_file()
    assert systems.vault_of(box) == ""
