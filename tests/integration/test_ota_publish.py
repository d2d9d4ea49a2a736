"""The publisher's command, as people use it: several of them, each with a key of their own."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ota import courier
from ota.campaign import Choice, Device, decide, read
from ota.errors import PublishError
from ota.manifest import Bundle, Campaign, Delta
from ota.publish import command, goods, keys
from ota.publish.workshop import Workshop
from ota.sources import Repository
from ota.trust import Trust
from tests import enrolling
from tests.updates import model

PASSPHRASE = "correct horse battery"
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture(autouse=True)
def passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command.PASSPHRASE, PASSPHRASE)


class Desk:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.workshop, self.keys, self._capsys = folder, folder / "workshop", folder / "keys", capsys

    def do(self, verb: str, *words: object, code: int = 0) -> str:
        assert command.main([verb, *map(str, words)]) == code
        captured = self._capsys.readouterr()
        return captured.out + captured.err

    def offers(self, repository: Repository | None = None) -> list:
        trust = Trust(self.folder / "trust", (self.metadata / "1.root.json").read_bytes(), _Now())
        found = repository or Repository.within(self.workshop / "repository", courier=False)
        with trust.view(found.metadata) as view:
            offers, problems = view.offers("plant-a")
        assert problems == []
        return [offer.content for offer in offers]

    @property
    def metadata(self) -> Path:
        return self.workshop / "repository" / "metadata"

    @property
    def makers(self) -> list[object]:
        return ["--key", self.keys / "trainer-plant-a", "--key", self.keys / "gate-plant-a"]


class _Now:
    def now(self, witness: str) -> float:
        import time

        return time.time()

    def learn(self, at_s: float, witness: str) -> None:
        pass


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    desk = Desk(tmp_path, capsys)
    said = desk.do("init", desk.workshop, "--fleet", "plant-a", "--make-keys", desk.keys)
    assert "published: root, targets, os-release, trainer-models.plant-a, snapshot, timestamp" in said
    return desk


def test_a_model_is_published_when_both_have_signed(desk: Desk) -> None:
    folder = model(desk.folder, "1.0.0")
    said = desk.do("add", desk.workshop, folder, "--fleet", "plant-a", "--key", desk.keys / "trainer-plant-a")
    assert "waits for 1 signatures" in said
    assert desk.offers() == []
    assert "published: trainer-models.plant-a" in desk.do("sign", desk.workshop, "--key", desk.keys / "gate-plant-a")
    [content] = desk.offers()
    assert isinstance(content, Bundle)
    assert (content.name, content.version) == ("pump", "1.0.0")


def test_a_change_after_a_signature_takes_the_signature_away(desk: Desk) -> None:
    for version in ("1.0.0", "2.0.0"):
        desk.do("add", desk.workshop, model(desk.folder, version), "--fleet", "plant-a", *desk.makers[:2])
    assert "waits for 1 signatures" in desk.do("status", desk.workshop)
    desk.do("sign", desk.workshop, *desk.makers[2:])
    assert [content.version for content in desk.offers()] == ["1.0.0", "2.0.0"]


def test_deltas_that_are_worth_it(desk: Desk) -> None:
    content = bytearray(random.Random(1).randbytes(100_000))
    for number in range(3):
        content[number * 100 : number * 100 + 50] = bytes(50)
        desk.do("add", desk.workshop, model(desk.folder, f"1.{number}.0", bytes(content)), "--fleet", "plant-a",
                *desk.makers)  # fmt: skip
    other = model(desk.folder, "1.3.0", random.Random(2).randbytes(100_000), "other")
    desk.do("add", desk.workshop, other, "--fleet", "plant-a", *desk.makers)
    said = desk.do("delta", desk.workshop, "pump", "--fleet", "plant-a", "--last", 2, *desk.makers)
    assert said.count("kept") == 2
    assert len([one for one in desk.offers() if isinstance(one, Delta)]) == 2


def test_a_delta_as_large_as_the_whole_is_dropped(desk: Desk) -> None:
    for number in range(2):
        folder = model(desk.folder, f"1.{number}.0", random.Random(number).randbytes(50_000))
        desk.do("add", desk.workshop, folder, "--fleet", "plant-a", *desk.makers)
    assert "dropped" in desk.do("delta", desk.workshop, "pump", "--fleet", "plant-a", *desk.makers)
    assert not [one for one in desk.offers() if isinstance(one, Delta)]


def test_deltas_only_from_versions_that_are_in_use(desk: Desk) -> None:
    content = bytearray(random.Random(1).randbytes(100_000))
    for number in range(4):
        content[number * 100 : number * 100 + 50] = bytes(50)
        desk.do("add", desk.workshop, model(desk.folder, f"1.{number}.0", bytes(content)), "--fleet", "plant-a",
                *desk.makers)  # fmt: skip
    used = desk.offers()[0]
    (stick := desk.folder / "stick").mkdir()
    for at, bundle in enumerate(["f" * 64, used.bundle]):
        courier.leave(stick, courier.Receipt("box-1", at, "pump", "1.0.0", bundle, "confirmed"))
    receipts = stick / courier.FOLDER / "receipts"
    desk.do("delta", desk.workshop, "pump", "--fleet", "plant-a", "--receipts", receipts, *desk.makers)
    assert [one.base for one in desk.offers() if isinstance(one, Delta)] == [used.bundle]


CAMPAIGN = """{"id": "pump-1", "salt": "s", "model": "pump", "version": "1.0.0", "bundle": "%s",
 "waves": [{"name": "all", "opens": "2026-01-01T00:00:00Z"}],
 "stop": {"reports": 2, "rolled_back_basis_points": 1000}}"""


def test_a_campaign_and_what_came_back(desk: Desk) -> None:
    from datetime import UTC, datetime

    said = desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    digest = said.split("pump 1.0.0: ")[1].split()[0]
    (file := desk.folder / "campaign.json").write_text(CAMPAIGN % digest)
    (stick := desk.folder / "stick").mkdir()
    for box, outcome in (("a", "confirmed"), ("b", "rolled-back")):
        courier.leave(stick, courier.Receipt(box, 1.0, "pump", "1.0.0", digest, outcome))
    receipts = stick / courier.FOLDER / "receipts"
    desk.do("campaign", desk.workshop, file, "--fleet", "plant-a", "--receipts", receipts, *desk.makers)
    assert Campaign("pump") in desk.offers()
    [placed] = (desk.workshop / "repository" / "targets" / "models" / "plant-a").glob("*.campaign")
    decision = decide(read(placed.read_bytes()), Device("c", {}), datetime(2026, 11, 21, tzinfo=UTC))
    assert decision.choice is Choice.LEAVE
    assert "1 of 2 devices rolled back" in decision.reason


def test_a_campaign_that_has_stopped_does_not_begin_again_by_itself(desk: Desk) -> None:
    """Devices that still had the bad model confirm it later: the share falls, and the campaign stays stopped."""
    said = desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    digest = said.split("pump 1.0.0: ")[1].split()[0]
    (file := desk.folder / "campaign.json").write_text(CAMPAIGN % digest)
    (stick := desk.folder / "stick").mkdir()

    def came_back(box: str, outcome: str) -> None:
        courier.leave(stick, courier.Receipt(box, 1.0, "pump", "1.0.0", digest, outcome))

    def sum_up(*more: object) -> str:
        receipts = stick / courier.FOLDER / "receipts"
        return desk.do("campaign", desk.workshop, file, "--fleet", "plant-a", "--receipts", receipts, *more)

    came_back("a", "confirmed")
    assert "stops" not in sum_up(*desk.makers)
    came_back("b", "rolled-back")
    assert "pump-1 stops: 1 of 2 devices rolled back" in sum_up(*desk.makers)
    for number in range(30):
        came_back(f"late-{number}", "confirmed")
    assert "pump-1 stops: 1 of 2 devices rolled back" in sum_up(*desk.makers)
    assert "stops" not in sum_up("--resume", *desk.makers)


def test_receipts_that_no_box_has_signed_do_not_count_where_the_boxes_authority_is_named(desk: Desk) -> None:
    """Anybody who has the stick may write 'confirmed': that shall open no wave."""
    said = desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    digest = said.split("pump 1.0.0: ")[1].split()[0]
    (file := desk.folder / "campaign.json").write_text(CAMPAIGN % digest)
    (stick := desk.folder / "stick").mkdir()
    for number in range(3):
        courier.leave(stick, courier.Receipt(f"forged-{number}", 1.0, "pump", "1.0.0", digest, "confirmed"))
    enrolling.office(desk.folder / "ca")
    words = [desk.workshop, file, "--fleet", "plant-a", "--receipts", stick / courier.FOLDER / "receipts"]
    assert "3 devices confirmed" in desk.do("campaign", *words)
    said = desk.do("campaign", *words, "--authority", desk.folder / "ca" / "ca.pem")
    assert "3 more are not signed by a box" in said
    assert "0 devices confirmed" in said


def test_a_campaign_of_a_bundle_that_is_not_there(desk: Desk) -> None:
    (file := desk.folder / "campaign.json").write_text(CAMPAIGN % ("0" * 64))
    assert "Add it first" in desk.do("campaign", desk.workshop, file, "--fleet", "plant-a", code=1)


def test_rotating_a_trainers_key(desk: Desk) -> None:
    desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    keys.create(desk.keys / "new", command.secret)
    leaving = keys.read_public(desk.keys / "trainer-plant-a.pub").keyid
    role = "trainer-models.plant-a"
    said = desk.do("rotate", desk.workshop, role, "--add", desk.keys / "new", "--remove", leaving)
    assert f"targets, {role}" in said
    said = desk.do("sign", desk.workshop, "--key", desk.keys / "targets-1", "--key", desk.keys / "targets-2")
    assert "targets waits for the roles below it" in said
    assert len(desk.offers()) == 1
    desk.do("sign", desk.workshop, "--key", desk.keys / "new", *desk.makers[2:])
    assert len(desk.offers()) == 1
    assert Workshop(desk.workshop).waiting() == []
    said = desk.do("add", desk.workshop, model(desk.folder, "2.0.0"), "--fleet", "plant-a", *desk.makers)
    assert "waits for 1 signatures" in said  # the old key counts no more


def test_rotating_the_online_key(desk: Desk) -> None:
    keys.create(desk.keys / "new", command.secret)
    leaving = keys.read_public(desk.keys / "online.pub").keyid
    assert desk.offers() == []
    for role in ("snapshot", "timestamp"):
        desk.do("rotate", desk.workshop, role, "--add", desk.keys / "new", "--remove", leaving,
                "--online", desk.keys / "new")  # fmt: skip
    desk.do("sign", desk.workshop, *(word for n in (1, 2, 3) for word in ("--key", desk.keys / f"root-{n}")))
    assert (desk.metadata / "2.root.json").is_file()
    assert desk.offers() == []


HOLDERS = {
    "root": ("root-1", [f"root-{number}" for number in (2, 3, 4)]),
    "targets": ("targets-1", ["root-1", "root-2", "root-3", "targets-2", "targets-3"]),
    "snapshot": ("online", ["root-1", "root-2", "root-3"]),
    "timestamp": ("online", ["root-1", "root-2", "root-3"]),
    "os-release": ("release-1", ["targets-1", "targets-2", "release-2"]),
    "trainer-models.plant-a": ("gate-plant-a", ["targets-1", "targets-2", "trainer-plant-a"]),
}


@pytest.mark.parametrize("role", HOLDERS)
def test_every_role_can_be_given_another_key(desk: Desk, role: str) -> None:
    """The one that leaves signs nothing any more; a box that was there before follows."""
    desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    assert len(desk.offers()) == 1
    leaving, signing = HOLDERS[role]
    desk.do("key", desk.keys / "new")
    keyid = keys.read_public(desk.keys / f"{leaving}.pub").keyid
    changed = ["--add", desk.keys / "new.pub", "--remove", keyid]
    if leaving == "online":
        changed += ["--online", desk.keys / "new"]
        other = "timestamp" if role == "snapshot" else "snapshot"
        desk.do("rotate", desk.workshop, other, *changed)
    asked = [word for name in [*signing, "new"] for word in ("--key", desk.keys / name)]
    said = desk.do("rotate", desk.workshop, role, *changed, *asked)
    assert "waits for" not in said
    delegator = Workshop(desk.workshop).published("targets" if role.count("-") else "root").signed
    keyids = delegator.get_delegated_role(role).keyids
    assert keyid not in keyids
    assert keys.read_public(desk.keys / "new.pub").keyid in keyids
    assert len(desk.offers()) == 1
    desk.do("rotate", desk.workshop, role, "--add", desk.keys / "new.pub", "--remove", keyid, code=1)


@pytest.mark.parametrize("role", ["root", "os-release", "timestamp"])
def test_whoever_trains_is_given_nothing_else_to_sign(desk: Desk, role: str) -> None:
    for name in ("trainer-plant-a", "gate-plant-a"):
        said = desk.do("rotate", desk.workshop, role, "--add", desk.keys / f"{name}.pub", code=1)
        assert "used elsewhere" in said
    assert Workshop(desk.workshop).waiting() == []


def test_a_stick(desk: Desk) -> None:
    desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    (stick := desk.folder / "stick").mkdir()
    said = desk.do("usb", desk.workshop, stick, "--fleet", "plant-a", "--key", desk.keys / "courier")
    assert "good for 90 days" in said
    assert len(desk.offers(courier.repository(stick))) == 1
    assert len(desk.offers()) == 1


def test_what_no_version_names_any_more_goes(desk: Desk) -> None:
    content = bytearray(random.Random(1).randbytes(50_000))
    for number in range(3):
        content[number * 100 : number * 100 + 50] = bytes(50)
        desk.do("add", desk.workshop, model(desk.folder, f"1.{number}.0", bytes(content)), "--fleet", "plant-a",
                *desk.makers)  # fmt: skip
        desk.do("delta", desk.workshop, "pump", "--fleet", "plant-a", "--last", 1, *desk.makers)
    desk.do("add", desk.workshop, model(desk.folder, "2.0.0"), "--fleet", "plant-a")  # it waits for signatures
    before = {path.name for path in desk.metadata.iterdir()}
    rehearsed = desk.do("prune", desk.workshop, "--days", 0, "--rehearse")
    assert "would go" in rehearsed
    assert {path.name for path in desk.metadata.iterdir()} == before
    assert "0 files" in desk.do("prune", desk.workshop)  # all of it has been replaced a moment ago
    said = desk.do("prune", desk.workshop, "--days", 0)
    assert said.replace("are gone", "would go") == rehearsed
    assert "0 files" in desk.do("prune", desk.workshop, "--days", 0)
    left = {path.name for path in desk.metadata.iterdir()}
    assert "1.root.json" in left
    assert {name.partition(".")[2] for name in left} == {name.partition(".")[2] for name in before}
    assert len(left) < len(before)
    named = {path.name.partition(".")[2] for path in (desk.workshop / "repository" / "targets").rglob("*.*")}
    assert {"pump-1.0.0.bundle", "pump-1.2.0.bundle", "pump-2.0.0.bundle"} <= named
    for target in Workshop(desk.workshop).published("trainer-models.plant-a").signed.targets.values():
        assert Workshop(desk.workshop).place(target).is_file()
    assert len(desk.offers()) == len(Workshop(desk.workshop).published("trainer-models.plant-a").signed.targets)
    desk.do("sign", desk.workshop, *desk.makers)
    assert "2.0.0" in [one.version for one in desk.offers() if isinstance(one, Bundle)]


def test_a_campaign_replaced_is_pruned_and_a_stick_keeps_nothing_old(desk: Desk) -> None:
    said = desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    digest = said.split("pump 1.0.0: ")[1].split()[0]
    (file := desk.folder / "campaign.json").write_text(CAMPAIGN % digest)
    stick = desk.folder / "stick"
    for salt in ("s", "t"):
        file.write_text((CAMPAIGN % digest).replace('"salt": "s"', f'"salt": "{salt}"'))
        desk.do("campaign", desk.workshop, file, "--fleet", "plant-a", *desk.makers)
        desk.do("usb", desk.workshop, stick, "--key", desk.keys / "courier")
    campaigns = (desk.workshop / "repository" / "targets" / "models" / "plant-a").glob
    assert len(list(campaigns("*.campaign"))) == 2
    assert ".pump.campaign" in desk.do("prune", desk.workshop, "--days", 0)
    [kept] = campaigns("*.campaign")
    assert read(kept.read_bytes()).salt == "t"
    [carried] = (stick / courier.FOLDER / "targets").rglob("*.campaign")
    assert carried.name == kept.name


def test_mistakes_are_told(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "already" in desk.do("init", desk.workshop, "--fleet", "x", code=1)
    assert "no workshop" in desk.do("status", tmp_path / "nowhere", code=1)
    assert "no role" in desk.do("add", desk.workshop, model(tmp_path, "1.0.0"), "--fleet", "x", code=1)
    assert "never overwritten" in desk.do("key", desk.keys / "online", code=1)
    monkeypatch.setenv(command.PASSPHRASE, "wrong")
    assert "does not open" in desk.do("sign", desk.workshop, "--key", desk.keys / "root-1", code=1)
    assert "Take 12" in desk.do("key", tmp_path / "mine", code=1)


def test_two_that_publish_at_a_time_take_turns(desk: Desk) -> None:
    words = [sys.executable, "-m", "ota.publish.command", "add", desk.workshop, "--fleet", "plant-a", *desk.makers]
    versions = ["1.0.0", "2.0.0", "3.0.0"]
    with Workshop(desk.workshop).held(lambda: None):
        at_work = [
            subprocess.Popen([str(word) for word in (*words, model(desk.folder, version))], stderr=subprocess.PIPE)
            for version in versions
        ]
        for one in at_work:
            assert one.stderr is not None
            assert b"another millwright-publish is at work here" in one.stderr.readline()
    assert [one.communicate(timeout=60) and one.returncode for one in at_work] == [0, 0, 0]
    assert sorted(content.version for content in desk.offers()) == versions


def test_the_same_version_with_another_content_is_refused(desk: Desk) -> None:
    desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    again = model(desk.folder / "again", "1.0.0", b"other")
    assert "Raise the version" in desk.do("add", desk.workshop, again, "--fleet", "plant-a", *desk.makers, code=1)


def test_models_of_a_fleet_are_encrypted_from_then_on(desk: Desk) -> None:
    said = desk.do("fleetkey", desk.folder / "fleet")
    recipient = said.split()[1]
    assert (desk.folder / "fleet").stat().st_mode & 0o077 == 0
    assert "is not there yet" in desk.do("fleetkey", desk.folder / "fleet", code=1)
    named = ["--fleet", "plant-a", "--to", desk.folder / "fleet.pub"]
    assert f"encrypted for {recipient}" in desk.do("seal", desk.workshop, *named)
    desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", *desk.makers)
    [content] = desk.offers()
    assert isinstance(content, Bundle)
    assert list(content.sealed) == [recipient]
    assert "not encrypted" in desk.do("seal", desk.workshop, "--fleet", "plant-a")
    assert "there is no role" in desk.do("seal", desk.workshop, "--fleet", "plant-x", code=1)


def test_a_private_key_is_never_in_the_clear(desk: Desk) -> None:
    for path in desk.keys.iterdir():
        if path.suffix != ".pub":
            assert path.stat().st_mode & 0o077 == 0
            assert b"ENCRYPTED" in path.read_bytes()


def test_a_key_in_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    """PKCS#11: the trainer's key is made in a token and never leaves it."""
    if not SOFTHSM.exists():
        pytest.skip(f"no token in software at {SOFTHSM}: install softhsm2")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(SOFTHSM))
    command_line = [
        "softhsm2-util",
        "--init-token",
        "--free",
        "--label",
        "desk",
        "--pin",
        PASSPHRASE,
        "--so-pin",
        "12345678",
    ]
    subprocess.run(command_line, check=True, capture_output=True, env=os.environ)
    _generate(PASSPHRASE)
    token = "hsm:2?label=desk"
    leaving = keys.read_public(desk.keys / "trainer-plant-a.pub").keyid
    desk.do("rotate", desk.workshop, "trainer-models.plant-a", "--add", token, "--remove", leaving)
    desk.do("sign", desk.workshop, "--key", desk.keys / "targets-1", "--key", desk.keys / "targets-3")
    desk.do("add", desk.workshop, model(desk.folder, "1.0.0"), "--fleet", "plant-a", "--key", token, *desk.makers[2:])
    assert [content.version for content in desk.offers()] == ["1.0.0"]
    with pytest.raises(PublishError, match="PYKCS11LIB"):
        keys.signer("hsm:2?label=elsewhere", command.secret)


def _generate(pin: str) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    token = pkcs11.lib(str(SOFTHSM)).get_token(token_label="desk")
    with token.open(user_pin=pin, rw=True) as session:
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        parameters.generate_keypair(store=True, label="signing", id=bytes([2]))


def test_receipts_of_the_same_box_count_once() -> None:
    given = read((CAMPAIGN % ("0" * 64)).encode())
    receipts = [
        courier.Receipt("a", at, "pump", "1.0.0", "0" * 64, outcome)
        for at, outcome in enumerate(["brought", "confirmed", "rolled-back", "brought"])
    ]
    assert goods.progress(given, receipts).rolled_back == 1
    assert goods.progress(given, receipts).reports == 1
