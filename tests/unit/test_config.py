"""The configuration: strict, and its errors name file, line, key and remedy."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from appliance import channels, plugins
from appliance.cli.config import effective, problems, reference, toml
from appliance.config import places, schema, secrets
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.config.secrets import VaultName
from appliance.connectors import configured, declared, dialects
from appliance.errors import ConfigError

BACKENDS = "appliance.vault.backends"
SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.encode_name: field.type
    for field in msgspec.structs.fields(Config)
    if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
}
KEYS = [(section, key) for section, kind in SECTIONS.items() for key in kind.__struct_fields__]


def read(text: str) -> Config:
    document = Document("box.toml", text)
    return document.into(Config, document.tables)


def outcome(text: str) -> Config | ConfigError:
    try:
        return read(text)
    except ConfigError as error:
        return error


def refused(text: str) -> ConfigError:
    document = Document("box.toml", text)
    with pytest.raises(ConfigError) as caught:
        configured(document, document.into(Config, document.tables).connectors)
    return caught.value


def found(text: str) -> list[str]:
    document = Document("box.toml", text)
    return [problem.message for problem in problems(document.into(Config, document.tables), document)]


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message", "remedy"),
        [
            ('# a bus\n[bus]\nulr = "x"', "box.toml:3: bus.ulr: there is no such key", "Did you mean 'url'?"),
            ("[recrod]", "box.toml:1: recrod: there is no such key", "Did you mean 'record'?"),
            ("[record]\n\nbudget_mb = 1", "box.toml:3: record.budget_mb: Expected `int` >= 8", "config reference"),
            (
                '[detect]\ndevice = "TPU"',
                "box.toml:2: detect.device: 'TPU' is none of its values",
                "There are: CPU, GPU",
            ),
            ("[paths]\nstate = 4", "box.toml:2: paths.state: Expected `path`, got `int`", "config reference"),
            ("bus = 3", "box.toml:1: bus: a table is needed, not int", "Write [bus]."),
            (
                "[connectors.host]\n[connectors.replya]\n",
                "box.toml:2: connectors.replya: 'replya' is not one of the connectors",
                "did you mean 'replay'?",
            ),
            (
                "[[connectors.simulator]]\nseed = 1\n[[connectors.simulator]]\nsede = 2",
                "box.toml:4: connectors.simulator.1.sede: there is no such key",
                "Did you mean 'seed'?",
            ),
            (
                '[detect]\npolicy = "latencie"',
                "box.toml:2: detect.policy: 'latencie' is none of its values",
                "Did you mean 'latency'? There are: latency, low-power, throughput.",
            ),
            (
                '[detect]\ndevice = ["CPU", "QPU"]',
                "box.toml:2: detect.device.1: 'QPU' is none of its values",
                "There are: CPU, GPU, GPU.0, GPU.1, GPU.2, GPU.3, NPU, auto.",
            ),
            (
                '[log]\nlevel = "loud"',
                "box.toml:2: log.level: 'loud' is none of its values",
                "There are: debug, error, info, warning.",
            ),
            ("connectors.host.disk = 5", "box.toml:1: connectors.host.disk: Expected `str`, got `int`", "reference"),
        ],
    )
    def test_an_error_names_file_line_key_and_remedy(self, text: str, message: str, remedy: str) -> None:
        error = refused(text)
        assert error.message == message
        assert remedy in error.remedy

    def test_broken_toml_names_the_line(self) -> None:
        with pytest.raises(ConfigError, match=r"box\.toml: .*line 2"):
            Document("box.toml", "[bus]\nurl = = 3")

    @pytest.mark.parametrize("content", [b"\xff\xfe", None])
    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "box.toml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"box\.toml"):
            Document.read(path)

    @given(st.sampled_from(KEYS), st.data())
    def test_a_mistyped_key_is_met_with_its_nearest_neighbour(
        self, place: tuple[str, str], data: st.DataObject
    ) -> None:
        section, key = place
        spot = data.draw(st.integers(0, len(key) - 1))
        wrong = key[:spot] + data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_")) + key[spot + 1 :]
        assume(wrong not in SECTIONS[section].__struct_fields__)
        padding = data.draw(st.integers(0, 5))
        error = refused("\n" * padding + f"[{section}]\n{wrong} = 1\n")
        assert error.message == f"box.toml:{padding + 2}: {section}.{wrong}: there is no such key"
        known = SECTIONS[section].__struct_fields__
        assert any(f"'{name}'" in error.remedy for name in known) or all(name in error.remedy for name in known)

    @given(st.sampled_from(KEYS), st.sampled_from(["true", "[1]", "{a = 1}", "1979-05-27", '"\\u0000"', "-1", "nan"]))
    def test_a_wrong_value_is_refused_at_its_line_or_taken(self, place: tuple[str, str], value: str) -> None:
        section, key = place
        result = outcome(f"[{section}]\n\n{key} = {value}\n")
        if isinstance(result, Config):
            assert getattr(getattr(result, section), key) is not None
        else:
            assert result.message.startswith(f"box.toml:3: {section}.{key}")
            assert result.remedy

    @given(st.text(max_size=200))
    def test_any_text_is_a_configuration_or_a_named_error(self, text: str) -> None:
        result = outcome(text)
        assert isinstance(result, Config) or result.message.startswith("box.toml")


class TestBeyondTypes:
    def test_the_defaults_are_in_order(self, tmp_path: Path) -> None:
        assert found(f'[paths]\nstate = "{tmp_path}/s"\nrun = "{tmp_path}/r"') == []

    def test_all_problems_are_told_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        long = tmp_path / ("x" * 120)
        text = f"""
            [paths]
            state = "{tmp_path}/file/state"
            run = "{long}"
            [detect]
            backend = "openvion"
            model = "{tmp_path}/file"
            [bus]
            cert_file = "{tmp_path}/none.pem"
            [connectors.hots]
            [connectors.host]
            intervall_s = 5
            [[connectors.replay]]
            file = "pump1.csv"
            asset = "Hall 1"
            [[limits]]
            asset = "line1/pump"
            point = "temperature"
            [[limits]]
            asset = "line1/pump"
            point = "current"
            min = 5
            max = 4
        """
        told = found(text)
        expected = [
            ("box.toml:10: connectors.hots", "not one of the connectors"),
            ("box.toml:12: connectors.host.intervall_s", "no such key"),
            ("box.toml:13: connectors.replay", "'Hall 1' is not 1 to 8 levels"),
            ("box.toml:3: paths.state", "is a file"),
            ("box.toml:4: paths.run", "bytes; the system allows 107"),
            ("box.toml:9: bus.cert_file", "cannot be read"),
            ("box.toml:8: bus", "go together"),
            ("box.toml:6: detect.backend", "is not a backend"),
            ("box.toml:7: detect.model", "is not a folder"),
            ("box.toml:16: limits.0", "neither min nor max"),
            ("box.toml:19: limits.1", "min 5 is not below max 4"),
        ]
        assert len(told) == len(expected), told
        for message, (start, problem) in zip(told, expected, strict=True):
            assert message.startswith(start)
            assert problem in message

    def test_a_recording_that_is_not_there_is_told_at_its_table(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("time,x\n0,1\n")
        text = f'''
            [[connectors.replay]]
            file = "{tmp_path}/a.csv"
            [[connectors.replay]]
            file = "{tmp_path}/none.csv"
        '''
        (told,) = found(f'[paths]\nstate = "{tmp_path}"\nrun = "{tmp_path}"\n{text}')
        assert told.startswith(f"box.toml:7: connectors.replay.1: there is no recording at {tmp_path}/none.csv")

    def test_recordings_of_one_name_do_not_share_an_asset(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "pump.csv").write_text("time,x\n0,1\n")
        text = f'''
            [paths]
            state = "{tmp_path}"
            run = "{tmp_path}"
            [[connectors.replay]]
            file = "{tmp_path}/a/pump.csv"
            [[connectors.replay]]
            file = "{tmp_path}/b/pump.csv"
        '''
        (told,) = found(text)
        assert told.startswith("box.toml:7: connectors.replay.1: 'replay/pump' is the asset of another replay already")
        assert found(f"{text}\nasset = 'line2/pump'\n") == []

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("unix:/run/mosquitto.sock", ""),
            ("mqtt://127.0.0.1:1883", ""),
            ("mqtts://plant.example:8883", "whom to trust"),
            ("mqtt://", "no address of a broker"),
            ("plant.example:1883", "no address of a broker"),
            ("unix:relative.sock", "no address of a broker"),
            ("mqtt://host:99999", "out of range"),
            ("unix:/" + "x" * 120, "107 bytes"),
        ],
    )
    def test_a_brokers_address(self, url: str, problem: str, tmp_path: Path) -> None:
        told = found(f'[bus]\nurl = "{url}"\n[paths]\nstate = "{tmp_path}"\nrun = "{tmp_path}"')
        assert len(told) == bool(problem)
        assert problem in "".join(told)


class TestShow:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            '[connectors.host]\ndisk = "/odd \\"path\\" \\u007f é"\n[bus]\nurl = "mqtt://h:1"',
            "[[connectors.simulator]]\nseed = 1\n[[connectors.simulator]]\nseed = 2\nrate_hz = 0.5",
            "[connectors]",
            '[connectors.replay]\nfile = ["a.csv", "b.csv"]',
        ],
    )
    def test_what_is_shown_reads_back_as_the_same(self, text: str) -> None:
        first = Document("box.toml", text)
        config = first.into(Config, first.tables)
        again = Document("shown", toml(effective(config, first)))
        shown = again.into(Config, again.tables)
        assert msgspec.structs.replace(shown, connectors={}) == msgspec.structs.replace(config, connectors={})
        assert configured(again, shown.connectors) == configured(first, config.connectors)

    @given(
        st.dictionaries(
            st.text(max_size=6),
            st.recursive(
                st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=6),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
                max_leaves=6,
            ),
            max_size=4,
        )
    )
    def test_any_tables_are_written_as_toml(self, tables: dict[str, Any]) -> None:
        assert repr(tomllib.loads(toml(tables))) == repr(_in_order_of_toml(tables))


def _in_order_of_toml(tables: dict[str, Any]) -> dict[str, Any]:
    """TOML's plain keys stand before its tables, at each level that is written as a table."""
    is_table = {key: _written_as_table(value) for key, value in tables.items()}
    ordered = sorted(tables, key=lambda key: is_table[key])
    return {key: _in_order_of_toml(tables[key]) if isinstance(tables[key], dict) else tables[key] for key in ordered}


def _written_as_table(value: Any) -> bool:
    several = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    return isinstance(value, dict) or bool(several)


class TestSecrets:
    CANARY = "hunter2-canary"

    def test_a_secret_is_named(self) -> None:
        config = read('[bus]\nusername = "box"\npassword = {vault = "mqtt/plant"}\n')
        assert config.bus.password == VaultName("mqtt/plant")
        assert dict(secrets.named(config)) == {("bus", "password"): VaultName("mqtt/plant")}
        assert dict(secrets.named(Config())) == {}

    def test_connectors_name_theirs_in_tables_that_are_not_read_yet(self) -> None:
        config = read('[[connectors.opcua]]\n[[connectors.opcua]]\nlogin = {password = {vault = "opcua/plc"}}')
        assert dict(secrets.named(config)) == {
            ("connectors", "opcua", "1", "login", "password"): VaultName("opcua/plc")
        }

    @pytest.mark.parametrize(
        "value",
        [
            f'"{CANARY}"',
            f'{{vault = "{CANARY}"}}',
            f'{{valut = "{CANARY}"}}',
            f'["{CANARY}"]',
            f'{{vault = ["{CANARY}"]}}',
        ],
    )
    def test_one_that_is_written_is_refused_and_not_repeated(self, value: str) -> None:
        error = outcome(f"[bus]\n\npassword = {value}\n")
        assert isinstance(error, ConfigError)
        assert error.message.startswith("box.toml:3: bus.password")
        assert self.CANARY not in str(error)
        assert error.__cause__ is None
        assert error.remedy

    def test_the_remedy_shows_how(self) -> None:
        error = outcome(f'[bus]\npassword = "{self.CANARY}"')
        assert isinstance(error, ConfigError)
        assert error.message.endswith("a secret stands here in clear, or no name of one")
        assert 'password = {vault = "plant/password"}' in error.remedy

    def test_the_name_is_shown_and_reads_back(self) -> None:
        document = Document("box.toml", '[bus]\npassword = {vault = "mqtt/plant"}')
        shown = toml(effective(document.into(Config, document.tables), document))
        assert tomllib.loads(shown)["bus"]["password"] == {"vault": "mqtt/plant"}
        assert read(shown).bus.password == VaultName("mqtt/plant")


class TestReference:
    def test_the_file_is_what_the_declarations_say(self, repository: Path) -> None:
        written = (repository / "appliance" / "config" / "REFERENCE.md").read_text("utf-8")
        remedy = "write it anew: millwright config reference > appliance/config/REFERENCE.md"
        assert written == reference(), remedy

    def test_it_does_not_depend_on_the_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = reference()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setattr(places, "INSTALLED", tmp_path)
        assert reference() == before

    def test_every_key_is_there_with_a_meaning(self) -> None:
        rows = [line for line in reference().splitlines() if line.startswith("| `")]
        described = {title: kind for title, kind in SECTIONS.items() if title not in ("vault", "devices", "log")}
        bound = [plugins.load(BACKENDS, name).Settings for name in plugins.names(BACKENDS)]
        found = [*dialects.declared().values(), *declared().values(), *channels.declared().values()]
        tail = [schema.Vault, *bound, schema.Devices, schema.Log, schema.Limit, schema.Settable, *found]
        settings = [*described.values(), *tail]
        keys = [key for kind in settings for key in kind.__struct_fields__]
        assert [row.split("`")[1] for row in rows] == keys
        assert all(len(row.split(" | ")[-1]) > 5 for row in rows), "a key without a description"
