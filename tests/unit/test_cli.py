"""The command line: its commands are found by their files, its errors are exit codes with a remedy."""

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import __version__
from appliance.__main__ import commands, main
from appliance.cli import findings, instance
from appliance.cli.findings import Finding, Scene, examine
from appliance.config.document import Document
from appliance.config.load import load
from appliance.config.places import Paths
from appliance.config.schema import Bus, Config, Detect
from appliance.errors import BusError
from appliance.events import codec, strays
from appliance.events.schema import State
from appliance.services.picture import Picture

NOW = 1_795_000_000_000_000_000


class TestMain:
    def ended(self, *words: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        assert isinstance(caught.value.code, int)
        return caught.value.code

    @pytest.mark.parametrize("minutes", ["0", "-5", "nan", "100000", "soon"])
    def test_a_time_on_the_shelf_that_cannot_be_is_wrong_usage(
        self, minutes: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.ended("alarms", "shelve", "line1/pump", f"--minutes={minutes}") == 2
        said = capfd.readouterr().err
        assert f"'{minutes}'" in said
        assert "$" not in said

    def test_the_commands_are_the_files(self) -> None:
        assert {"alarms", "config", "doctor", "watch"} <= set(commands())
        assert not {"instance", "screen", "findings"} & set(commands())

    def test_the_help_lists_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended("--help") == 0
        listed = re.findall(r"^    ([\w-]+)  +\S", capsys.readouterr().out, re.MULTILINE)
        assert listed == commands()

    @pytest.mark.parametrize("name", commands())
    def test_every_command_has_a_help(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended(name, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: millwright {name} ")

    def test_the_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended("--version") == 0
        assert capsys.readouterr().out == f"millwright {__version__}\n"

    def test_an_unknown_command_meets_its_neighbour(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended("docter") == 2
        assert "did you mean 'doctor'?" in capsys.readouterr().err

    def test_no_command_is_wrong_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.ended() == 2
        assert "COMMAND" in capsys.readouterr().err

    @pytest.mark.parametrize("first", [True, False])
    def test_options_for_all_stand_before_or_after_the_command(
        self, first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "doctor"  # a value that is a command's name, too
        path.write_text("[detect]\nhop = 7\n")
        option, command = ["--config", str(path)], ["config", "show", "--json"]
        assert main(option + command if first else command + option) == 0
        assert json.loads(capsys.readouterr().out)["detect"]["hop"] == 7

    def test_an_error_is_a_message_a_remedy_and_a_code(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "box.toml"
        path.write_text("[detect]\nhopp = 7\n")
        assert main(["config", "show", "--config", str(path)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == f"millwright: {path}:2: detect.hopp: there is no such key\n  -> Did you mean 'hop'?\n"

    def test_only_the_command_that_is_asked_for_is_imported(self, tmp_path: Path) -> None:
        script = (
            "import sys\nfrom appliance.__main__ import main\nmain(['config', 'show'])\n"
            "print(*(name for name in sys.modules if name.startswith('appliance.cli.')), *sys.modules, file=sys.stderr)"
        )
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        loaded = set(done.stderr.split())
        assert "appliance.cli.config" in loaded
        assert not {"appliance.cli.watch", "rich", "numpy", "paho", "openvino", "uvloop"} & loaded


class TestConfigCheck:
    def check(self, path: Path, *words: str) -> int:
        return main(["config", "check", str(path), *words])

    def test_sources_of_updates_go_with_a_fleet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "box.toml"
        path.write_text('[update]\nsources = ["ftp://there"]\n')
        assert self.check(path) == 2
        told = capsys.readouterr()
        said = told.out + told.err
        assert f"{path}:1: update.fleet: there are sources and no fleet" in said
        assert "'ftp://there/metadata' is not an address of the web" in said
        path.write_text('[update]\nfleet = "plant-a"\nsources = ["/media/*"]\n')
        assert self.check(path) == 0

    def test_a_good_one(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "box.toml"
        path.write_text(f'[paths]\nstate = "{tmp_path}"\nrun = "/tmp/mw"\n[connectors.simulator]\n')
        assert self.check(path) == 0
        assert capsys.readouterr().out == f"{path}: in order. Connectors: simulator\n"
        assert self.check(path, "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"ok": True, "source": str(path), "problems": []}

    def test_all_problems_are_listed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "box.toml"
        path.write_text('[detect]\nbackend = "none"\n[bus]\nurl = "plant"\n')
        assert self.check(path) == 2
        told = capsys.readouterr()
        assert f"{path}:4: bus.url: 'plant' is no address" in told.out
        assert f"{path}:2: detect.backend: 'none' is not a backend\n  -> There are: " in told.err
        assert self.check(path, "--json") == 2
        found = json.loads(capsys.readouterr().out)
        assert not found["ok"]
        assert [problem["message"].split(":")[1] for problem in found["problems"]] == ["4", "2"]
        assert all(problem["remedy"] for problem in found["problems"])

    def test_one_that_cannot_be_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(tmp_path / "none.toml", "--json") == 2
        assert not json.loads(capsys.readouterr().out)["ok"]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    return tmp_path / "millwright" / instance.FILE


class TestInstance:
    args = argparse.Namespace(config=None)

    def test_an_announced_instance_is_found_with_its_paths(self, runtime: Path, tmp_path: Path) -> None:
        file = tmp_path / "box.toml"
        file.write_text("[detect]\nhop = 9\n")
        config = Config(paths=Paths(tmp_path / "s", tmp_path / "r"))
        instance.announce(config, file, demo=True)
        assert json.loads(runtime.read_text()) == {
            "pid": os.getpid(),
            "config": str(file),
            "state": str(tmp_path / "s"),
            "run": str(tmp_path / "r"),
            "demo": True,
            "hear": [],
        }
        found, document = instance.configuration(self.args)
        assert (found.paths, found.detect.hop, document.source) == (config.paths, 9, str(file))
        assert instance.bus_url(found) == f"unix:{tmp_path}/r/mqtt.sock"
        assert list(runtime.parent.iterdir()) == [runtime]

    def test_brokers_that_were_named_at_the_start_belong_to_it(self, runtime: Path, tmp_path: Path) -> None:
        file = tmp_path / "box.toml"
        file.write_text('[connectors.mqtt]\nurl = "mqtt://plant"\n')
        instance.announce(load(file)[0], file, demo=False, hear=["mqtt://z2m", "mqtt://plant"])
        found, _ = instance.configuration(self.args)
        assert found.connectors == {"mqtt": [{"url": "mqtt://plant"}, {"url": "mqtt://z2m"}]}

    def test_a_named_configuration_goes_first(self, runtime: Path, tmp_path: Path) -> None:
        instance.announce(Config(paths=Paths(tmp_path / "s", tmp_path / "r")), None, demo=False)
        file = tmp_path / "other.toml"
        file.write_text('[bus]\nurl = "mqtt://plant:1"\n')
        found, _ = instance.configuration(argparse.Namespace(config=file))
        assert instance.bus_url(found) == "mqtt://plant:1"

    def test_after_its_end_there_are_defaults(self, runtime: Path) -> None:
        instance.announce(Config(), None, demo=False)
        instance.retract()
        assert not runtime.exists()
        instance.retract()
        assert instance.configuration(self.args)[0] == load()[0]

    def test_one_that_died_is_not_found(self, runtime: Path) -> None:
        instance.announce(Config(), None, demo=False)
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        runtime.write_text(runtime.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {ended.pid}'))
        assert instance.find() is None

    def test_another_ones_announcement_is_not_retracted(self, runtime: Path) -> None:
        instance.announce(Config(), None, demo=False)
        text = runtime.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {os.getppid()}')
        runtime.write_text(text)
        instance.retract()
        assert runtime.read_text() == text

    @pytest.mark.parametrize("content", [b"", b"{", b'{"pid": "x"}', b"\xff", b'{"pid": 1}'])
    def test_a_damaged_announcement_is_none(self, runtime: Path, content: bytes) -> None:
        runtime.parent.mkdir()
        runtime.write_bytes(content)
        assert instance.find() is None


def seen(config: Config | None = None, silence: BusError | None = None, **states: State) -> Scene:
    picture = Picture(NOW)
    picture.services.update(states)
    document = Document("box.toml", "")
    return Scene(config or Config(), document, None, None if silence else picture, silence, NOW)


class TestFindings:
    def test_the_packages_are_those_of_the_project(self, repository: Path) -> None:
        project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
        assert sorted(findings.REQUIRED) == sorted(project["dependencies"])
        assert project["requires-python"] == ">=" + ".".join(map(str, findings.OLDEST_PYTHON))

    def test_every_reason_to_drop_has_a_remedy(self) -> None:
        assert {*codec.REASONS, *strays.REASONS} <= set(findings.REMEDIES)

    @pytest.mark.parametrize(
        ("requirement", "problem"),
        [
            ("pytest>=1.0", ""),
            ("pytest>=99.1", "not >=99.1"),
            ("pytest==1.0", "not ==1.0"),
            ("no-such-package>=1", "no-such-package is missing"),
        ],
    )
    def test_a_package_that_does_not_fit_is_named(
        self, requirement: str, problem: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(findings, "REQUIRED", (requirement,))
        found = list(findings.versions(seen()))
        assert found[0].status == ("fail" if problem else "ok")
        assert problem in found[0].detail

    def test_services_that_are_missing_offline_or_wrong(self) -> None:
        scene = seen(
            ingest=State(NOW, True, "1", received=3, processed=2, dropped={"empty": 1}),
            detect=State(NOW, True, "1", received=3, processed=2, detail={"trouble": "the disk is full"}),
            forward=State(0, False),
        )
        found = {(one.name, one.status): one for one in findings.services(scene)}
        assert set(found) == {
            ("detect", "fail"),
            ("detect trouble", "fail"),
            ("forward", "fail"),
            ("ingest", "ok"),
            ("record", "fail"),
        }
        assert "books do not balance" in found["detect", "fail"].detail
        assert "has not said a word" in found["record", "fail"].detail

    def test_drops_carry_their_example_and_their_remedy(self) -> None:
        state = State(NOW, True, dropped={"not-finite": 7, "odd": 1}, detail={"examples": {"not-finite": "a\x1b[2J"}})
        first, second = findings.drops(seen(ingest=state))
        assert (first.status, first.remedy) == ("warn", findings.REMEDIES["not-finite"])
        assert "dropped 7 messages: not-finite" in first.detail
        assert "\x1b" not in first.detail
        assert second.remedy

    def test_a_device_that_is_wanted_and_missing_is_a_fault(self) -> None:
        def of(device: str) -> dict[str, Finding]:
            config = Config(detect=Detect(device=device))  # type: ignore[arg-type]
            return {found.name: found for found in findings.devices(seen(config))}

        if of("auto")["NPU"].detail.endswith("this machine has none"):
            assert of("auto")["NPU"].status == "ok"
            assert of("NPU")["NPU"].status == "fail"
        assert of("CPU")["CPU"].status == "ok"

    def test_a_folder_that_keeps_no_files_is_not_called_a_full_disk(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")

        def told(state: Path) -> Finding:
            return next(findings.disks(seen(Config(paths=Paths(state, tmp_path)))))

        for path, problem in ((tmp_path / "file" / "state", "is a file, not a folder"), (Path("/proc/none"), "/proc")):
            found = told(path)
            assert (found.name, found.status) == ("state folder", "fail")
            assert problem in found.detail
            assert "full" not in found.detail
            assert found.remedy
        assert told(tmp_path / "new").status in ("ok", "warn")

    def test_a_budget_larger_than_the_disk_is_a_warning(self, tmp_path: Path) -> None:
        config = load()[0]
        small = findings.budget(seen(Config(paths=Paths(tmp_path, tmp_path))))
        assert next(small).status in ("ok", "warn")
        huge = Config(paths=Paths(tmp_path, tmp_path), record=type(config.record)(budget_mb=10_000_000))
        found = next(findings.budget(seen(huge)))
        assert (found.status, "record.budget_mb" in found.remedy) == ("warn", True)

    def test_a_remote_broker_without_encryption_is_a_warning(self) -> None:
        assert next(findings.bus(seen(Config(bus=Bus(url="mqtt://plant:1883"))))).status == "warn"
        assert next(findings.bus(seen(Config(bus=Bus(url="mqtt://127.0.0.1:1883"))))).status == "ok"
        assert next(findings.bus(seen(silence=BusError("no answer", "start it")))).status == "fail"

    def test_a_program_that_is_not_installed(self) -> None:
        config = Config(broker=type(Config().broker)(executable="no-such-broker"))
        found = next(findings.broker(seen(config)))
        assert (found.status, found.remedy) == ("fail", "Install it: apt install mosquitto")

    def test_a_clock_in_the_past_is_a_fault(self) -> None:
        found = next(findings.time_of_day(seen()._replace(now=10**18)))
        assert (found.status, bool(found.remedy)) == ("fail", True)

    def test_what_may_not_be_looked_at_is_told(self) -> None:
        def locked_room(_: Scene) -> Iterator[Finding]:
            yield Finding("before", "ok", "")
            raise PermissionError("not allowed")

        found = examine(seen(), (locked_room,))
        assert [(one.name, one.status) for one in found] == [("before", "ok"), ("locked room", "warn")]

    def test_whatever_is_not_ok_has_a_remedy(self) -> None:
        scene = seen(Config(detect=Detect(device="NPU")), silence=BusError("no answer", "start it"))
        found = examine(scene)
        assert {one.name for one in found} >= {"software", "configuration", "state folder", "broker", "bus", "clock"}
        assert all(one.remedy for one in found if one.status != "ok")
