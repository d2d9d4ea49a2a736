"""What an enemy of the updates may try, each as a test of its own: over a real web server, with real keys."""

import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile

from ota import courier, manifest
from ota.delta.making import make
from ota.errors import (
    DamagedError,
    ExpiredError,
    FetchError,
    ManifestError,
    MissingError,
    OlderError,
    PublishError,
    TrustError,
)
from ota.fetch import Course
from ota.manifest import Image
from ota.publish import founding, goods
from ota.sources import Answer, Folder, Repository
from ota.trust import FIELD, OS_RELEASE, models_role
from tests.updates import DAY, FLEET, NOON, OTHER, Box, Handler, Publisher, Server, model, serving

IMAGE = "os/box-2.0.image"


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


def versions(box: Box, repository: Repository, fleet: str = FLEET) -> list[str]:
    offers, problems = box.supply(repository, fleet).offers()
    assert problems == []
    return [offer.content.version for offer in offers if isinstance(offer.content, manifest.Bundle)]


def image(publisher: Publisher, tmp_path: Path):
    (file := tmp_path / "evil.image").write_bytes(b"boot me")
    return publisher.workshop.put(file, IMAGE, manifest.custom(Image("box", "2.0")))


# ---- who may sign what ----------------------------------------------------------------------------------------------


def test_a_trainer_cannot_ship_an_os_image(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    target = image(publisher, tmp_path)
    role = models_role(FLEET)
    targets = publisher.targets()
    targets.targets[IMAGE] = target
    publisher.forge(role, targets, publisher.keys.of(role))
    with box.trust().view(server.repository().metadata) as view:
        assert view.find(IMAGE) is None
        offers, problems = view.offers(FLEET)
    assert offers == []
    assert problems == []


def test_nor_where_the_top_delegates_the_system_to_the_trainer(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    role = models_role(FLEET)
    targets = publisher.targets()
    targets.targets[IMAGE] = image(publisher, tmp_path)
    publisher.forge(role, targets, publisher.keys.of(role))
    top = publisher.workshop.targets("targets")
    roles = top.delegations.roles
    roles[role].paths.append("os/*")
    top.delegations.roles = {role: roles.pop(role), **roles}
    publisher.forge("targets", top, publisher.keys.targets)
    with box.trust().view(server.repository().metadata) as view, pytest.raises(TrustError, match=f"comes from {role}"):
        view.find(IMAGE)


def test_nor_the_top_role_itself(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    top = publisher.workshop.targets("targets")
    top.targets[IMAGE] = image(publisher, tmp_path)
    publisher.forge("targets", top, publisher.keys.targets)
    with box.trust().view(server.repository().metadata) as view, pytest.raises(TrustError, match="os-release alone"):
        view.find(IMAGE)


def test_os_release_ships_the_image(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    role = publisher.workshop.targets(OS_RELEASE)
    role.targets[IMAGE] = image(publisher, tmp_path)
    publisher.workshop.stage(OS_RELEASE, role)
    publisher.publish()
    with box.trust().view(server.repository().metadata) as view:
        found = view.find(IMAGE)
    assert found is not None
    assert found.role == OS_RELEASE


def test_a_trainers_key_that_may_sign_systems_too_is_refused(publisher: Publisher, server: Server, box: Box) -> None:
    top = publisher.workshop.targets("targets")
    top.add_key(publisher.keys.trainers[FLEET][0].public_key, OS_RELEASE)
    publisher.forge("targets", top, publisher.keys.targets)
    with pytest.raises(TrustError, match="a key of"), box.trust().view(server.repository().metadata):
        pass


@pytest.mark.parametrize("signer", [0, 1], ids=["the trainer alone", "the gate alone"])
def test_one_of_two_signatures_is_not_enough(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path, signer: int
) -> None:
    publisher.add(model(tmp_path, "1.0.0"))
    assert versions(box, server.repository()) == ["1.0.0"]
    role = models_role(FLEET)
    publisher.forge(role, publisher.targets(), [publisher.keys.of(role)[signer]])
    with pytest.raises(TrustError, match="signed by 1/2"):
        versions(box, server.repository())


def test_a_role_that_asks_for_one_signature_is_refused(publisher: Publisher, server: Server, box: Box) -> None:
    top = publisher.workshop.targets("targets")
    top.delegations.roles[models_role(FLEET)].threshold = 1
    publisher.forge("targets", top, publisher.keys.targets)
    with pytest.raises(TrustError, match="asks for 1 signatures; this box asks for 2"):
        versions(box, server.repository())


def test_a_root_that_asks_for_two_signatures_is_refused(publisher: Publisher, server: Server, box: Box) -> None:
    root = publisher.workshop.root()
    root.roles["root"].threshold = 2
    publisher.workshop.stage("root", root)
    publisher.publish()
    with pytest.raises(TrustError, match="this box asks for 3"):
        versions(box, server.repository())


def test_another_fleets_model_is_refused(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    publisher.add(model(tmp_path, "1.0.0"), OTHER)
    assert versions(box, server.repository()) == []
    # The other fleet's people put a model into this fleet's folder.
    role = models_role(OTHER)
    targets = publisher.targets(OTHER)
    [(path, target)] = targets.targets.items()
    target.path = path.replace(OTHER, FLEET)
    targets.targets = {target.path: target}
    publisher.forge(role, targets, publisher.keys.of(role))
    assert versions(box, server.repository()) == []
    with box.trust().view(server.repository().metadata) as view:
        assert view.find(target.path) is None
        offers, problems = view.offers(OTHER)
    assert (offers, problems) == ([], [])


def test_the_same_role_name_under_two_delegators(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    """The second fleet's people delegate to a role named as the first one's, with a key of their own."""
    publisher.add(model(tmp_path, "1.0.0"))
    name, enemy = models_role(FLEET), CryptoSigner.generate_ed25519()
    targets = publisher.targets(OTHER)
    targets.delegations = Delegations(
        {enemy.public_key.keyid: enemy.public_key},
        {name: DelegatedRole(name, [enemy.public_key.keyid], 1, terminating=False, paths=["models/*/*"])},
    )
    publisher.forge(models_role(OTHER), targets, publisher.keys.trainers[OTHER])
    with box.trust().view(server.repository().metadata) as view:
        with pytest.raises(TrustError):  # it does not verify under its second delegator
            view.find(f"models/{OTHER}/pump-1.0.0.bundle")
        offers, problems = view.offers(FLEET)
    assert [offer.target.role for offer in offers] == [name]
    assert problems == []


def test_keys_shared_between_trainers_and_others_are_not_even_made(publisher: Publisher) -> None:
    publisher.keys.trainers[FLEET][0] = publisher.keys.release[0]
    with pytest.raises(PublishError, match="used elsewhere"):
        founding.found(publisher.workshop, publisher.keys.people())


# ---- what was signed, but not like this -----------------------------------------------------------------------------


def test_mix_and_match(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    """Each file rightly signed, but of two moments."""
    publisher.add(model(tmp_path, "1.0.0"))
    publisher.add(model(tmp_path, "2.0.0"))
    role = models_role(FLEET)
    shutil.copy(publisher.metadata / f"2.{role}.json", publisher.metadata / f"3.{role}.json")
    with pytest.raises(OlderError):
        versions(box, server.repository())


def test_an_older_snapshot_under_a_new_timestamp(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    """The online key is stolen: it can freeze, but it cannot bring an old model back."""
    publisher.add(model(tmp_path, "1.0.0"))
    publisher.add(model(tmp_path, "2.0.0"))
    assert versions(box, server.repository()) == ["1.0.0", "2.0.0"]
    old = Metadata.from_file(str(publisher.metadata / "2.snapshot.json"))
    old.signed.version = 9
    old.signatures.clear()
    old.sign(publisher.keys.online)
    old.to_file(str(publisher.metadata / "9.snapshot.json"))
    _stamp(publisher, 9, 9)
    with pytest.raises(OlderError):
        versions(box, server.repository())


def _stamp(publisher: Publisher, version: int, snapshot: int, signed_s: float = NOON, days: float = 1) -> None:
    stamp = Metadata.from_file(str(publisher.metadata / "timestamp.json"))
    stamp.signed.version, stamp.signed.snapshot_meta = version, MetaFile(snapshot)
    stamp.signed.expires = datetime.fromtimestamp(int(signed_s + days * DAY), UTC)
    stamp.signed.unrecognized_fields[FIELD] = {"signed_s": int(signed_s)}
    stamp.signatures.clear()
    stamp.sign(publisher.keys.online)
    stamp.to_file(str(publisher.metadata / "timestamp.json"))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", models_role(FLEET)])
def test_a_bit_flip_in_metadata(publisher: Publisher, server: Server, box: Box, tmp_path: Path, role: str) -> None:
    publisher.add(model(tmp_path, "1.0.0"))

    def flip(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if f"{role}.json" not in path:
            return False
        at = data.index(b'"version"') + 11
        handler.give(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        return True

    server.fault = flip
    with pytest.raises(TrustError):
        versions(box, server.repository())
    server.fault = lambda *_: False
    assert versions(box, server.repository()) == ["1.0.0"]


def test_a_bit_flip_in_a_model(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))

    def flip(handler: Handler, path: str, data: bytes, begin: int) -> bool:
        if not path.endswith(".bundle"):
            return False
        handler.give(data[:-1] + bytes([data[-1] ^ 1]), begin)
        return True

    server.fault = flip
    supply = box.supply(server.repository())
    with pytest.raises(DamagedError):
        supply.bring(wanted)
    server.fault = lambda *_: False
    supply.bring(wanted)
    supply.verify(wanted)
    assert box.store.add(supply.make(wanted), wanted.bundle).name == wanted.bundle


def test_what_rots_on_the_disk_after_it_arrived_is_fetched_again(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    supply = box.supply(server.repository())
    supply.bring(wanted)
    [file] = (box.folder / "updates" / "files").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedError):
        supply.verify(wanted)
    supply.bring(wanted)
    supply.verify(wanted)


@pytest.mark.parametrize("what", ["timestamp.json", "1.targets.json", ".bundle"])
def test_endless_data(publisher: Publisher, server: Server, box: Box, tmp_path: Path, what: str) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    server.fault = lambda handler, path, data, begin: path.endswith(what) and handler.endless(b" " * 4096) is None
    with pytest.raises(FetchError):
        box.supply(server.repository()).bring(wanted)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "models/plant-a/../../x", "models//x", "/x", "models/plant-a/x\n"]
)
def test_a_targets_name_leads_nowhere_else(publisher: Publisher, server: Server, box: Box, path: str) -> None:
    role = models_role(FLEET)
    targets = publisher.targets()
    target = image(publisher, publisher.workshop.folder)
    target.path = path
    targets.targets[path] = target
    publisher.forge(role, targets, publisher.keys.of(role))
    with box.trust().view(server.repository().metadata) as view:
        offers, _ = view.offers(FLEET)
        with pytest.raises(TrustError, match="no name for a target"):
            view.find(path)
    assert offers == []


def test_a_target_that_is_called_other_than_it_is(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    publisher.add(model(tmp_path, "1.0.0"))
    targets = publisher.targets()
    [target] = targets.targets.values()
    target.path = f"models/{FLEET}/pump-9.0.0.bundle"
    targets.targets = {target.path: target}
    role = models_role(FLEET)
    publisher.forge(role, targets, publisher.keys.of(role))
    offers, problems = box.supply(server.repository()).offers()
    assert offers == []
    assert isinstance(problems[0], ManifestError)


# ---- time -----------------------------------------------------------------------------------------------------------


def test_a_freeze_past_expiry(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    publisher.add(model(tmp_path, "1.0.0"))
    assert versions(box, server.repository()) == ["1.0.0"]
    box.clock += 1.1 * DAY
    with pytest.raises(ExpiredError):
        versions(box, server.repository())
    publisher.now += 1.1 * DAY
    publisher.renew()
    assert versions(box, server.repository()) == ["1.0.0"]


def test_a_clock_set_back_does_not_make_the_old_new(publisher: Publisher, server: Server, box: Box) -> None:
    shutil.copytree(publisher.workshop.repository, publisher.workshop.folder / "held back")
    publisher.now = box.clock = NOON + 3 * DAY
    publisher.renew()
    assert versions(box, server.repository()) == []
    box.clock = NOON
    # A second box of the same floor file, without the rollback state: only time can tell.
    shutil.rmtree(box.folder / "trust")
    server.root = publisher.workshop.folder / "held back"
    with pytest.raises(ExpiredError):
        versions(box, server.repository())


def test_a_dead_clock_learns_from_the_signed_time(publisher: Publisher, server: Server, box: Box) -> None:
    box.clock = 0.0
    shutil.copytree(publisher.workshop.repository, publisher.workshop.folder / "held back")
    publisher.now = NOON + 200 * DAY
    _resign_models(publisher)
    assert versions(box, server.repository()) == []  # it is not stuck
    with box.trust().view(server.repository().metadata) as view:
        assert view.standing.judged_at_s == publisher.now
    shutil.rmtree(box.folder / "trust")
    server.root = publisher.workshop.folder / "held back"
    with pytest.raises(ExpiredError):  # nor does it take what is half a year old
        versions(box, server.repository())


def _resign_models(publisher: Publisher) -> None:
    for fleet in (FLEET, OTHER):
        publisher.workshop.stage(models_role(fleet), publisher.targets(fleet))
    publisher.publish()


def test_the_signed_time_judges_the_rest_of_the_same_state(publisher: Publisher, server: Server, box: Box) -> None:
    """A stolen online key stamps a snapshot that is out of date, for a box whose clock stands."""
    box.clock = 0.0
    _stamp(publisher, 2, 1, signed_s=NOON + 20 * DAY)
    with pytest.raises(ExpiredError):
        versions(box, server.repository())


def test_the_clock_alone_never_raises_the_floor(publisher: Publisher, server: Server, box: Box) -> None:
    box.clock = NOON + 4000 * DAY
    with pytest.raises(ExpiredError):
        versions(box, server.repository())
    box.clock = NOON
    assert versions(box, server.repository()) == []


def test_a_timestamp_signed_after_its_own_end(publisher: Publisher, server: Server, box: Box) -> None:
    _stamp(publisher, 2, 1, signed_s=NOON + 20 * DAY, days=-10)
    box.clock = 0.0
    with pytest.raises(TrustError):
        versions(box, server.repository())


def test_fast_forward_then_root_rotation(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    """The online key is stolen and signs for the year 2100 and version two thousand million; then it is replaced."""
    publisher.add(model(tmp_path, "1.0.0"))
    assert versions(box, server.repository()) == ["1.0.0"]
    honest = (publisher.metadata / "timestamp.json").read_bytes()
    _stamp(publisher, 2_000_000_000, 2, signed_s=NOON + 27_000 * DAY)
    with pytest.raises(ExpiredError):
        versions(box, server.repository())
    (publisher.metadata / "timestamp.json").write_bytes(honest)
    with pytest.raises(TrustError):
        versions(box, server.repository())
    _replace_online_key(publisher)
    assert versions(box, server.repository()) == ["1.0.0"]


def _replace_online_key(publisher: Publisher) -> None:
    stolen, publisher.keys.online = publisher.keys.online, CryptoSigner.generate_ed25519()
    for role in ("snapshot", "timestamp"):
        founding.rotate(publisher.workshop, role, [publisher.keys.online.public_key], [stolen.public_key.keyid])
    publisher.publish()


def test_offline_across_five_root_rotations(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    assert versions(box, server.repository()) == []
    for number in range(5):
        leaving, coming = publisher.keys.root[number], CryptoSigner.generate_ed25519()
        founding.rotate(publisher.workshop, "root", [coming.public_key], [leaving.public_key.keyid])
        publisher.keys.root.append(coming)
        publisher.publish()
        publisher.now += 300 * DAY
    _replace_online_key(publisher)
    for role in ("targets", OS_RELEASE):
        publisher.workshop.stage(role, publisher.workshop.targets(role))
    _resign_models(publisher)
    publisher.add(model(tmp_path, "1.0.0"))
    box.clock = publisher.now
    assert versions(box, server.repository()) == ["1.0.0"]
    with box.trust().view(server.repository().metadata) as view:
        assert view.standing.root > 6


def test_a_root_signed_only_by_the_new_keys(publisher: Publisher, server: Server, box: Box) -> None:
    assert versions(box, server.repository()) == []
    enemy = Publisher(publisher.workshop.folder / "enemy")
    root = enemy.workshop.root()
    root.version = 2
    forged = Metadata(root)
    for signer in enemy.keys.root:
        forged.sign(signer, append=True)
    forged.to_file(str(publisher.metadata / "2.root.json"))
    with pytest.raises(TrustError):
        versions(box, server.repository())


# ---- sticks ---------------------------------------------------------------------------------------------------------


def prepare(publisher: Publisher, stick: Path) -> Repository:
    goods.prepare_stick(publisher.workshop, stick, None, publisher.keys.courier, [publisher.keys.online])
    found = courier.repository(stick)
    assert found is not None
    return found


def test_a_stick_brings_a_model_after_months(publisher: Publisher, box: Box, tmp_path: Path) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    publisher.workshop.configure(msgspec.structs.replace(publisher.workshop.settings, days=_long()))
    _resign_models(publisher)
    stick = prepare(publisher, tmp_path / "stick")
    box.clock += 80 * DAY
    supply = box.supply(stick)
    supply.bring(wanted)
    supply.verify(wanted)
    assert box.store.add(supply.make(wanted), wanted.bundle).is_dir()
    box.clock += 20 * DAY
    with pytest.raises(ExpiredError):
        box.supply(stick).offers()


def _long() -> dict[str, float]:
    return {"root": 1095, "targets": 365, OS_RELEASE: 365, "trainer-models": 365, "snapshot": 7, "timestamp": 1}


def test_an_old_stick_is_harmless_and_its_files_are_used(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    stick = prepare(publisher, tmp_path / "stick")
    publisher.add(model(tmp_path, "2.0.0"))
    assert versions(box, server.repository()) == ["1.0.0", "2.0.0"]
    before = (box.folder / "trust" / "timestamp.json").read_bytes()
    server.fault = lambda handler, path, data, begin: handler.reset() is None  # the network is gone
    with pytest.raises(OlderError), box.trust().view(stick.metadata):
        pass
    assert versions(box, stick) == ["1.0.0", "2.0.0"]  # by what the box knows
    supply = box.supply(stick)
    supply.bring(wanted)
    assert box.store.add(supply.make(wanted), wanted.bundle).is_dir()
    newer = next(offer for offer in supply.offers()[0] if offer.content.version == "2.0.0")
    with pytest.raises(MissingError):
        supply.bring(newer.content)
    assert (box.folder / "trust" / "timestamp.json").read_bytes() == before


def test_the_web_goes_on_after_a_stick(publisher: Publisher, server: Server, box: Box, tmp_path: Path) -> None:
    publisher.add(model(tmp_path, "1.0.0"))
    stick = prepare(publisher, tmp_path / "stick")
    assert versions(box, stick) == ["1.0.0"]
    assert versions(box, server.repository()) == ["1.0.0"]


def test_what_was_signed_for_a_stick_is_not_taken_from_the_web(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    publisher.add(model(tmp_path, "1.0.0"))
    prepare(publisher, tmp_path / "stick")
    server.root = tmp_path / "stick" / courier.FOLDER
    with pytest.raises(ExpiredError, match="signed for a stick"):
        versions(box, server.repository())


class Pulled(Folder):
    """A stick that is gone after so many bytes of a file."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self.left = after

    def _chunks(self, name: str, descriptor: int, offset: int) -> Iterator[bytes]:
        for chunk in super()._chunks(name, descriptor, offset):
            self.left -= len(chunk)
            if self.left < 0:
                raise self._broken(name, OSError(5, "Input/output error"))
            yield chunk


def test_a_stick_pulled_in_the_middle_of_a_file(publisher: Publisher, box: Box, tmp_path: Path) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0", random.Random(1).randbytes(1 << 20)))
    stick = prepare(publisher, tmp_path / "stick")
    pulled = Repository(stick.metadata, Pulled(tmp_path / "stick" / courier.FOLDER / "targets", 700_000))
    with pytest.raises(FetchError, match="Input/output error"):
        box.supply(pulled).bring(wanted, Course(rest=lambda seconds: None))
    [part] = (box.folder / "updates" / "files").glob("*.part")
    assert 0 < part.stat().st_size < 1 << 20
    supply = box.supply(stick)  # plugged in again: it goes on from there
    assert supply.route(wanted.bundle, supply.offers()[0]).fetch_bytes < 800_000
    supply.bring(wanted)
    assert box.store.add(supply.make(wanted), wanted.bundle).is_dir()


def test_a_stick_pulled_while_it_was_written_is_no_repository(publisher: Publisher, box: Box, tmp_path: Path) -> None:
    stick = prepare(publisher, tmp_path / "stick")
    (tmp_path / "stick" / courier.FOLDER / "metadata" / "timestamp.json").unlink()
    with pytest.raises(MissingError):
        box.supply(stick).offers()


@pytest.mark.parametrize("what", ["metadata/timestamp.json", "targets/models", "metadata"])
def test_a_link_on_a_stick_is_not_followed(publisher: Publisher, box: Box, tmp_path: Path, what: str) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    stick = prepare(publisher, tmp_path / "stick")
    linked = tmp_path / "stick" / courier.FOLDER / what
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FetchError):
        box.supply(stick).bring(wanted, Course(rest=lambda seconds: None))


def test_a_receipt_does_not_follow_a_link_to_this_box(tmp_path: Path) -> None:
    (tmp_path / "stick" / courier.FOLDER / "receipts").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "stick" / courier.FOLDER / "receipts" / "box-1").symlink_to(tmp_path / "precious")
    receipt = courier.Receipt("box-1", NOON, "pump", "1.0.0", "0" * 64, "confirmed")
    with pytest.raises(FetchError):
        courier.leave(tmp_path / "stick", receipt)
    assert list((tmp_path / "precious").iterdir()) == []


def test_an_empty_answer_of_a_source_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError), Folder(tmp_path).open("../x"):
        pass
    assert Answer(0, iter([])).begin == 0


# ---- deltas that lie ------------------------------------------------------------------------------------------------


def test_a_signed_delta_that_makes_something_else_is_gone_around(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(100_000)
    old, new = model(tmp_path, "1.0.0", content), model(tmp_path, "2.0.0", content[:-50] + bytes(50))
    first = publisher.add(old)
    supply = box.supply(server.repository())
    supply.bring(first)
    box.store.add(supply.make(first), first.bundle)
    supply.clear(first)
    second = publisher.add(new)
    goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
    publisher.publish()

    def wrong(base: Path, patch: Path, target: Path) -> None:
        shutil.copytree(base, target)

    supply = box.supply(server.repository(), apply=wrong)
    assert supply.route(second.bundle, supply.offers()[0]).kind == "delta"
    supply.bring(second)
    supply.verify(second)
    assert box.store.add(supply.make(second), second.bundle).is_dir()
    assert any(path.endswith("pump-2.0.0.bundle") for path, _ in server.asked)
