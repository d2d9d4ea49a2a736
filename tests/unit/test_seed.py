"""The seed: what is a mistake in one, and what a right one makes of a box."""

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import seed as seeds
from appliance.config import seeding
from appliance.config.seed import Network, Seed
from appliance.errors import ConfigError

CANARY = "s3cret-canary"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJsdWIdnKnSkXhLr3cEDZJ+mKx1sXo8pJqGqQ0c0n3V8 me@there"
WHOLE = f'''
host_name = "press-2"

[[network]]
interface = "enp1s0"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateway = "192.0.2.1"
dns = ["192.0.2.1"]

[[network]]
interface = "00:11:22:33:44:55"

[time]
servers = ["192.0.2.1", "time.example"]

[ssh]
keys = ["{KEY}"]

[updates]
sources = ["https://updates.example/plant"]
fleet = "plant-a"

[secrets]
"mqtt/plant" = "{CANARY}"

[connectors.host]
interval_s = 2.0

[config.broker]
tls_port = 8883
'''


def parsed(text: str) -> Seed:
    return seeds.parse("seed.toml", text.encode())[0]


def made(text: str) -> seeding.Outcome:
    return seeding.outcome(parsed(text))


def files(text: str) -> dict[str, str]:
    return {file.path: file.content for file in made(text).files}


def test_an_empty_seed_changes_nothing() -> None:
    assert made("") == seeding.Outcome((), {}, {}, ())


def test_a_whole_one() -> None:
    found, outcome = files(WHOLE), made(WHOLE)
    assert found["/etc/hostname"] == "press-2\n"
    assert found["/etc/millwright/ssh/authorized_keys"] == f"{KEY}\n"
    assert "NTP=192.0.2.1 time.example\n" in found["/etc/systemd/timesyncd.conf.d/50-millwright.conf"]
    fixed, asked = (
        found["/etc/systemd/network/20-millwright-0.network"],
        found[f"{seeding.NETWORKS}/21-millwright-1.network"],
    )
    assert fixed.splitlines()[1:] == [
        "[Match]", "Name=enp1s0", "", "[Network]", "DHCP=no", "Address=192.0.2.10/24", "Address=2001:db8::10/64",
        "Gateway=192.0.2.1", "DNS=192.0.2.1",
    ]  # fmt: skip
    assert "PermanentMACAddress=00:11:22:33:44:55\n" in asked
    assert "DHCP=yes\n" in asked
    assert outcome.tables == {
        "broker": {"tls_port": 8883},
        "update": {"sources": ["https://updates.example/plant"], "fleet": "plant-a"},
        "connectors": {"host": {"interval_s": 2.0}},
    }
    assert outcome.secrets == {"mqtt/plant": CANARY}


def test_no_secret_stands_in_what_may_be_logged() -> None:
    seed, outcome = parsed(WHOLE), made(WHOLE)
    assert CANARY not in repr(seed) + repr(outcome)
    assert not any(CANARY in file.content for file in outcome.files)


@pytest.mark.parametrize(
    ("text", "where", "remedy"),
    [
        ('host_nam = "a"', "seed.toml:1: host_nam:", "host_name"),
        ('host_name = "Press 2"', "seed.toml:1: host_name:", "--reference"),
        ("[time]\nserver = []", "seed.toml:2: time.server:", "servers"),
        ('[time]\nservers = ["a b"]', "seed.toml:2: time.servers", "--reference"),
        ('\n[[network]]\naddresses = ["192.0.2.10"]', "seed.toml:3: network.0.addresses:", "192.0.2.7/24"),
        ('[[network]]\n[[network]]\ngateway = "192.0.2.1"', "seed.toml:3: network.1.gateway:", "DHCP gives"),
        ('[[network]]\naddresses = ["192.0.2.10/24"]\ngateway = "x"', "seed.toml:3: network.0.gateway:", "192.0.2.1"),
        ('[[network]]\ndns = ["one.example"]', "seed.toml:2: network.0.dns:", "192.0.2.1"),
        ("[[network]]\ndhcp = false", "seed.toml:1: network.0:", "dhcp = true"),
        ('[[network]]\ninterface = "a b"', "seed.toml:2: network.0.interface", "--reference"),
        ('[ssh]\nkeys = ["command=\\"sh\\" ssh-rsa AAAA"]', "seed.toml:2: ssh.keys", "--reference"),
        (f'[ssh]\nkeys = ["{KEY}\\nssh-rsa {"A" * 60}"]', "seed.toml:2: ssh.keys", "--reference"),
        ('[secrets]\nplant = "x"', "seed.toml:2: secrets.plant:", "namespace/name"),
        ('[secrets]\n"mqtt/plant" = ""', "seed.toml:1: secrets.mqtt/plant:", "Leave it out"),
        ('[secrets]\n"mqtt/plant" = 7', "seed.toml:", "--reference"),
        ("[config.paths]\nstate = '/'", "seed.toml:1: config.paths:", "Leave it out"),
        ("[config]\nbase = '/tmp/of-mine.toml'", "seed.toml:2: config.base:", "Leave it out"),
        ("[config.connectors.host]", "seed.toml:1: config.connectors", "[connectors]"),
        ("[updates]\nfleet = 'a'\n[config.update]\nfleet = 'b'", "seed.toml:3: config.update:", "[updates]"),
        ("[updates]\nsources = ['/media/*']", "seed.toml:1: updates.fleet:", "fleet ="),
        ("[config.update]\nsources = ['/media/*']", "seed.toml:1: config.update.fleet:", "fleet ="),
        ("host_name = ", "seed.toml: ", "Mend the TOML"),
        ("network = 3", "seed.toml:1: network", "--reference"),
    ],
)
def test_a_mistake_names_line_key_and_remedy(text: str, where: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert caught.value.message.startswith(where)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("raw", "problem"),
    [(b"\xff\xfe", "UTF-8"), (b"# " + b"x" * seeds.MAX_BYTES, "more than"), (b"a\0b", "seed.toml: ")],
)
def test_bytes_that_are_none(raw: bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        seeds.parse("seed.toml", raw)


def test_a_mark_that_editors_put_in_front() -> None:
    assert seeds.parse("s", b"\xef\xbb\xbfhost_name = 'a'")[0].host_name == "a"


def test_a_seed_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        seeds.read(tmp_path / "none")


@given(raw=st.binary(max_size=400))
def test_any_bytes_are_a_seed_or_a_sentence(raw: bytes) -> None:
    found: Seed | ConfigError
    try:
        found = seeds.parse("s", raw)[0]
    except ConfigError as error:
        found = error
    assert isinstance(found, Seed) or found.remedy


@given(
    network=st.builds(
        Network,
        interface=st.from_regex(r"[a-z0-9]{1,15}", fullmatch=True),
        addresses=st.lists(st.ip_addresses(v=4).map(lambda one: f"{one}/24"), min_size=1, max_size=3),
        dns=st.lists(st.ip_addresses().map(str), max_size=3),
    )
)
def test_a_networks_file_says_what_the_seed_says(network: Network) -> None:
    outcome = seeding.outcome(Seed(network=[network]))
    assert outcome == seeding.outcome(Seed(network=[network]))
    (file,) = outcome.files
    pairs = [line.partition("=") for line in file.content.splitlines() if "=" in line]
    assert [value for key, _, value in pairs if key == "Address"] == network.addresses
    assert [value for key, _, value in pairs if key == "DNS"] == network.dns
    assert seeding.is_networks(file.path.rpartition("/")[2])


def test_the_reference_is_what_the_declarations_say(repository: Path) -> None:
    written = (repository / "appliance" / "config" / "SEED.md").read_text("utf-8")
    assert written == seeds.reference(), "write it anew: millwright first-boot --reference > appliance/config/SEED.md"
    for kind in (Network, seeds.Time, seeds.Ssh, seeds.Updates, seeds.Recovery):
        for field in msgspec.structs.fields(kind):
            assert f"| `{field.encode_name}` |" in written


def test_the_example_in_the_reference_is_one() -> None:
    example = [line[4:] for line in seeds.reference().splitlines() if line.startswith("    ") or not line]
    text = "\n".join(example)
    assert tomllib.loads(text)["host_name"] == "press-2"
    assert parsed(text).network[0].gateway == "192.0.2.1"
