"""The image's units: what a configuration asks for has one that is enabled, and a user that exists."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from appliance import assembly, forwarding
from appliance.__main__ import main
from appliance.config.schema import Config, Infer, Metrics
from appliance.vault import rules
from appliance.vault.policy import Peer

EXTRA = Path(__file__).parents[2] / "image/mkosi.extra"
UNITS = EXTRA / "usr/lib/systemd/system"
POLICY = EXTRA / "etc/millwright/vault-policy.toml"
ALWAYS = {"vault", "broker"}  # on the image, whatever `choose` says: a box has both
EVERYTHING = Config(infer=Infer(port=8000), metrics=Metrics(port=9464), forward={"mqtt": {}})


def unit(service: str) -> dict[str, list[str]]:
    return settings(UNITS / f"millwright-{service}.service")


def settings(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def enabled(name: str) -> bool:
    """By the first line that speaks of it."""
    for line in (EXTRA / "usr/lib/systemd/system-preset/10-millwright.preset").read_text("utf-8").splitlines():
        verb, _, pattern = line.partition(" ")
        if verb in ("enable", "disable") and fnmatch(name, pattern):
            return verb == "enable"
    return False


def users() -> dict[str, str]:
    text = (EXTRA / "usr/lib/sysusers.d/millwright.conf").read_text("utf-8")
    return dict(re.findall(r"^u (\S+)\s+(\d+) ", text, re.MULTILINE))


def test_the_whole_configuration_asks_for_every_service() -> None:
    assert {*assembly.choose((), EVERYTHING), *ALWAYS} == set(assembly.SERVICES)


@pytest.mark.parametrize("service", assembly.SERVICES)
def test_each_service_has_a_unit_that_is_enabled_and_a_user_that_exists(service: str) -> None:
    found = unit(service)
    assert found["ExecStart"] == [f"/usr/bin/millwright run {service}"]
    assert found["WantedBy"] == ["multi-user.target"]
    assert enabled(f"millwright-{service}.service")
    assert found["User"][0] in users()
    assert found["SupplementaryGroups"] == ["millwright"]


@pytest.mark.parametrize("service", assembly.SERVICES)
def test_what_may_not_be_configured_is_asked_about_and_nothing_else(service: str) -> None:
    conditional = service not in assembly.choose((), Config()) and service not in ALWAYS
    assert unit(service).get("ExecCondition", []) == [f"/usr/bin/millwright config runs {service}"] * conditional


def test_no_unit_names_a_service_that_does_not_exist() -> None:
    named = [
        name
        for path in UNITS.glob("millwright-*.service")
        for key in ("ExecStart", "ExecCondition")
        for line in settings(path).get(key, [])
        for name in re.findall(r"millwright (?:run|config runs) (\S+)", line)
    ]
    assert set(named) == set(assembly.SERVICES)


@pytest.mark.parametrize("path", sorted(UNITS.glob("millwright-*")), ids=lambda path: path.name)
def test_what_can_be_enabled_is_and_a_timer_has_its_service(path: Path) -> None:
    if path.is_file() and {"WantedBy", "RequiredBy"} & set(settings(path)):
        assert enabled(path.name)
    if path.suffix == ".timer":
        assert path.with_suffix(".service").is_file()


def test_what_others_must_not_read_has_a_user_of_its_own() -> None:
    alone = [unit(name)["User"][0] for name in ("vault", "broker", "record", "ingest", "forward", "metrics")]
    assert len(set(alone)) == len(alone)
    assert len(set(users().values())) == len(users())
    folders = (EXTRA / "usr/lib/tmpfiles.d/millwright.conf").read_text("utf-8")
    assert f"d /var/lib/millwright/{forwarding.FOLDER} 0700 mw-forward mw-forward -\n" in folders


@pytest.mark.parametrize("name", ["mqtt/cloud", "http/plant", "notify/telegram", "mqtt/home", "masking/cloud"])
def test_forward_may_read_the_secrets_that_its_pages_name(name: str) -> None:
    policy = rules.read(POLICY, POLICY.stat().st_uid)
    assert policy.allows(Peer(4806, user="mw-forward"), "read", name)
    assert not policy.allows(Peer(4806, user="mw-forward"), "write", name)
    assert not policy.allows(Peer(4807, user="mw-metrics"), "read", name)
    assert not policy.allows(Peer(4806, user="mw-forward"), "read", "certificates/authority")


@pytest.mark.parametrize(
    ("text", "service", "code"),
    [
        ("", "metrics", 1),
        ("[metrics]\nport = 9464\n", "metrics", 0),
        ("[infer]\nport = 8000\n", "infer", 0),
        ("[forward.mqtt]\nurl = 'mqtt://127.0.0.1'\n", "forward", 0),
        ("", "forward", 1),
        ("", "ingest", 0),
        ("[metrics]\nport = 'soon'\n", "metrics", 255),
        ("", "nonsense", 255),
    ],
)
def test_whether_a_service_is_to_run(text: str, service: str, code: int, tmp_path: Path) -> None:
    """255 fails a unit, and any other number skips it without a word."""
    path = tmp_path / "box.toml"
    path.write_text(f'[paths]\nstate = "{tmp_path}/state"\nrun = "{tmp_path}/run"\n{text}')
    assert main(["--config", str(path), "config", "runs", service]) == code


@pytest.mark.parametrize(
    ("user", "name"),
    [("mw-ingest", "mqtt/plant"), ("mw-ingest", "opcua/oven"), ("mw-ingest", "identity/opcua"),
     ("mw-ingest", "http/plant"), ("mw-models", "fleet/plant-a")],
)  # fmt: skip
def test_services_may_read_what_their_configuration_names_and_not_who_the_box_is(user: str, name: str) -> None:
    policy = rules.read(POLICY, POLICY.stat().st_uid)
    peer = Peer(4805, user=user)
    assert policy.allows(peer, "read", name)
    assert not policy.allows(peer, "write", name)
    assert not policy.allows(peer, "read", "identity/device")
    assert not policy.allows(peer, "read", "certificates/authority")
