"""`millwright update os apply --by-itself`: what a timer does on a box that nobody visits."""

import json
import subprocess
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from appliance.cli import unattended
from appliance.runtime import files
from hardware.slots import SlotError
from ota.system import release as releases
from tests.integration.test_system_update import Site, pytestmark, site

__all__ = ["pytestmark", "site"]
ASK = ("apply", "--by-itself", "--restart")


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    monkeypatch.setattr(unattended, "restart", lambda: made.append("restart"))
    return made


@pytest.fixture
def willing(site: Site) -> Site:
    """A box that takes systems by itself."""
    configure(site, 'system = "newest"')
    return site


def configure(site: Site, *lines: str) -> None:
    path = site.box / "box.toml"
    path.write_text("\n".join((path.read_text(), *lines, "")))


def test_without_a_word_of_its_owner_nothing_is_asked(site: Site, restarts: list[str]) -> None:
    site.publish("1.2", 2)
    assert site.run(*ASK) == (0, "this box takes nothing by itself.\n")
    assert (restarts, site.server.asked, site.state.exists()) == ([], [], False)


def test_outside_of_its_hours_nothing_is_asked(willing: Site, restarts: list[str]) -> None:
    willing.publish("1.2", 2)
    configure(willing, 'never = ["00:00-24:00"]')
    code, said = willing.run(*ASK)
    assert (code, said) == (0, "by this box's own hours: not at this time of day.\n")
    assert (restarts, willing.server.asked) == ([], [])


def test_from_an_offer_to_the_commit_with_nobody_there(willing: Site, restarts: list[str]) -> None:
    willing.publish("1.2", 2)
    code, said = willing.run(*ASK)
    assert code == 0, said
    assert said.endswith("writing ...\n1.2 is tried by a restart.\n")
    assert restarts == ["restart"]
    willing.restart()
    assert willing.run(*ASK) == (0, "1.2 is not blessed yet.\n")
    willing.slots.bless()
    willing.run("settle")
    assert willing.book()["committed"] == "1.2"
    assert willing.run(*ASK) == (0, "1.2 is not newer than 1.2, which runs.\n")
    assert restarts == ["restart"]


def test_one_that_was_given_up_is_left_alone_until_there_is_a_newer_one(willing: Site, restarts: list[str]) -> None:
    willing.publish("1.2", 2)
    willing.run(*ASK)
    willing.restart(broken=frozenset({"1.2"}))
    willing.run("settle")
    code, said = willing.run(*ASK)
    assert code == 0
    assert said.startswith("1.2 was given up here")
    willing.publish("1.3", 3)
    assert willing.run(*ASK)[1].endswith("1.3 is tried by a restart.\n")
    assert len(restarts) == 2


def test_one_that_waits_is_restarted_into_and_nothing_is_fetched(willing: Site, restarts: list[str]) -> None:
    willing.publish("1.2", 2)
    willing.run("apply")
    asked = len(willing.server.asked)
    assert willing.run(*ASK) == (0, "1.2 is tried by a restart.\n")
    assert (restarts, len(willing.server.asked)) == (["restart"], asked)
    assert willing.run("apply", "--by-itself") == (0, "1.2 is tried by a restart.\n")
    assert restarts == ["restart"]


def test_hours_that_end_while_it_is_written_put_the_restart_off(
    willing: Site, restarts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    willing.publish("1.2", 2)
    install = willing.slots.install

    def slow(*args: object) -> None:
        install(*args)  # type: ignore[arg-type]
        held.append("it is day")

    held: list[str] = []
    monkeypatch.setattr(willing.slots, "install", slow)
    monkeypatch.setattr(unattended, "held", lambda detail, settings, now: held[-1] if held else "")
    assert willing.run(*ASK)[1].endswith("writing ...\nit is day.\n")
    assert restarts == []
    held.clear()
    assert willing.run(*ASK) == (0, "1.2 is tried by a restart.\n")


@pytest.mark.parametrize(
    ("sources", "why"), [("[]", "no repository is configured"), ('["http://127.0.0.1:9"]', "127.0.0.1:9")]
)
def test_no_repository_is_a_note(willing: Site, restarts: list[str], sources: str, why: str) -> None:
    path = willing.box / "box.toml"
    path.write_text(path.read_text().replace(f'["{willing.server.url}"]', sources))
    code, said = willing.run(*ASK)
    assert code == 0, said
    assert why in said
    assert (said.count("\n"), restarts) == (1, [])


def test_a_repository_that_cannot_be_believed_is_a_failure(willing: Site) -> None:
    (willing.folder / "root.json").unlink()
    code, said = willing.run(*ASK)
    assert code == 1
    assert "no repository can be believed" in said


def test_a_line_that_breaks_is_gone_on_with_an_hour_later(willing: Site, restarts: list[str]) -> None:
    way = willing.publish("1.2", 2).root.ways[1]
    part = willing.publisher.workshop.part(way.place)
    there = part.read_bytes()
    part.unlink()
    code, said = willing.run(*ASK)
    assert code == 0, said
    assert "1.2 is fetching" in willing.run("status")[1]
    part.write_bytes(there)
    assert willing.run(*ASK)[1].endswith("1.2 is tried by a restart.\n")
    assert restarts == ["restart"]


@pytest.mark.parametrize(
    "change",
    [lambda one: replace(one, architecture="arm64"), lambda one: replace(one, root=replace(one.root, length=1 << 31))],
)
def test_what_speaks_against_it_is_told(
    willing: Site, restarts: list[str], change: Callable[[releases.Release], releases.Release]
) -> None:
    willing.publish("1.2", 2, change)
    code, said = willing.run(*ASK)
    assert code == 1, said
    assert "1.2 cannot be installed: " in said
    assert "\n  -> " in said
    assert restarts == []


def test_what_was_begun_gives_way_to_what_is_newer(
    willing: Site, restarts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    willing.publish("1.2", 2)

    def refuse(version: str, folder: object) -> None:
        raise SlotError("the disk is busy")

    with monkeypatch.context() as patch:
        patch.setattr(willing.slots, "install", refuse)
        assert willing.run(*ASK)[0] == 1
    assert "1.2 is writing" in willing.run("status")[1]
    willing.publish("1.3", 3)
    assert willing.run(*ASK)[1].endswith("1.3 is tried by a restart.\n")
    assert willing.slots.standing().complete == {"1.1", "1.3"}
    assert restarts == ["restart"]


def test_as_json_and_with_what_it_does_not_take(willing: Site) -> None:
    willing.publish("1.2", 2)
    found = json.loads(willing.run("apply", "--by-itself", "--json")[1])
    assert found == {"act": "restart", "reason": "1.2 is tried by a restart"}
    assert willing.run("apply", "--by-itself", "1.2")[0] == 2


def test_while_somebody_else_updates_it_rests(willing: Site, restarts: list[str]) -> None:
    willing.publish("1.2", 2)
    with files.held(willing.state / "lock", "updates the system"):
        code, said = willing.run(*ASK)
    assert (code, restarts, willing.server.asked) == (0, [], [])
    assert said.startswith("another Millwright updates the system")


def test_a_restart_that_is_refused_is_told(willing: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        unattended.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 1, "", "Access denied")
    )
    willing.publish("1.2", 2)
    code, said = willing.run(*ASK)
    assert code == 1
    assert "the restart is refused: Access denied" in said
