"""Models that only one fleet can read: sealed by the publisher, opened with the key that the vault keeps."""

import base64
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from msgspec.structs import replace

from appliance.errors import VaultError
from appliance.services.unwrapping import FleetKeys
from appliance.vault import hpke
from appliance.vault.memory import MemoryKeeper
from appliance.vault.secret import Secret
from ota import bundle, manifest, sealed
from ota.delta.making import make
from ota.errors import ManifestError, MissingError, PublishError, StorageError
from ota.manifest import SEALED, Bundle, Delta
from ota.publish import goods, sealing
from ota.publish.workshop import Workshop
from ota.supply import Supply
from ota.trust import models_role
from tests.updates import FLEET, Box, Publisher, Server, model, serving


def vault(*privates: bytes) -> FleetKeys:
    """The vault of a box, with these keys of its fleet."""
    keeper = MemoryKeeper(lambda: 0)
    for number, private in enumerate(privates):
        keeper.put(f"fleet/key-{number}", Secret(private))
    return FleetKeys(keeper)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "workshop")


@pytest.fixture
def key(publisher: Publisher, tmp_path: Path) -> bytes:
    return given_to(publisher, tmp_path / "fleet")


@pytest.fixture
def server(publisher: Publisher) -> Iterator[Server]:
    with serving(publisher.workshop.repository) as server:
        yield server


@pytest.fixture
def box(publisher: Publisher, tmp_path: Path) -> Box:
    return Box(tmp_path / "box", publisher.root)


def given_to(publisher: Publisher, path: Path) -> bytes:
    """From now on models are sealed for this new key."""
    sealing.create(path)
    seal_for(publisher.workshop, sealing.read_public(path.with_name(f"{path.name}.pub")))
    return path.read_bytes()


def seal_for(workshop: Workshop, *lines: str) -> None:
    workshop.configure(replace(workshop.settings, sealed={FLEET: lines}))


def install(supply: Supply, box: Box, wanted: Bundle) -> Path:
    supply.bring(wanted)
    supply.verify(wanted)
    made = box.store.add(supply.make(wanted), wanted.bundle)
    supply.clear(wanted)
    return made


CONTENT = bytes(range(256)) * 1500


def test_a_fleet_opens_whole_models_and_deltas(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    first = publisher.add(model(tmp_path, "1.0.0", CONTENT))
    supply = box.supply(server.repository(), unwrapper=vault(key))
    install(supply, box, first)
    second = publisher.add(model(tmp_path, "2.0.0", b"new" + CONTENT))
    route = supply.route(second.bundle, supply.offers()[0])
    assert route.disk_bytes > 2 * route.fetch_bytes + second.unpacked_bytes - 100  # encrypted, opened, unpacked
    [made] = goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
    assert made.kept or made.patch_bytes
    publisher.publish()
    for offer in supply.offers()[0]:
        assert isinstance(offer.content, Bundle | Delta)
        assert offer.content.sealed
        assert SEALED in offer.content.needs.features
        published = (publisher.workshop.repository / "targets" / offer.target.place).read_bytes()
        assert published.startswith(sealed.MAGIC)
        assert b"card.toml" not in published
    folder = install(supply, box, second)
    assert bundle.digest(folder) == second.bundle
    assert not list((box.folder / "updates").rglob("open-*"))


def test_with_a_key_of_each_kind_and_two_recipients(
    publisher: Publisher, server: Server, box: Box, tmp_path: Path
) -> None:
    pairs = [hpke.generate("x25519"), hpke.generate("mlkem768-x25519")]
    seal_for(publisher.workshop, *(base64.b64encode(public).decode() for _, public in pairs))
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    for number, (private, _) in enumerate(pairs):
        other = Box(tmp_path / f"box-{number}", publisher.root)
        assert install(other.supply(server.repository(), unwrapper=vault(private)), other, wanted).is_dir()


def test_a_box_without_a_vault_is_not_offered_what_it_cannot_open(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    with pytest.raises(MissingError):
        box.supply(server.repository()).bring(wanted)


def test_a_box_without_this_key_waits_for_it(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    supply = box.supply(server.repository(), unwrapper=vault(hpke.generate()[0]))
    supply.bring(wanted)
    supply.verify(wanted)
    with pytest.raises(StorageError, match="no key here opens it"):
        supply.make(wanted)
    assert box.store.add(box.supply(server.repository(), unwrapper=vault(key)).make(wanted), wanted.bundle).is_dir()


def test_a_wrapped_key_of_another_file_opens_nothing(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    """Rightly signed, but with the wrapped key of the version before: its context is another one."""
    publisher.add(model(tmp_path, "1.0.0"))
    wanted = publisher.add(model(tmp_path, "2.0.0"))
    targets = publisher.targets()
    old, new = (targets.targets[f"models/{FLEET}/pump-{version}.bundle"] for version in ("1.0.0", "2.0.0"))
    new.custom[manifest.KEY]["sealed"] = old.custom[manifest.KEY]["sealed"]
    role = models_role(FLEET)
    publisher.forge(role, targets, publisher.keys.of(role))
    supply = box.supply(server.repository(), unwrapper=vault(key))
    supply.bring(wanted)
    with pytest.raises(ManifestError, match="another key or another purpose"):
        supply.make(wanted)
    assert box.store.at_hand() == set()


def test_another_fleets_file_under_this_fleets_name_does_not_open(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    """A file sealed under the right key, of another path: whoever signs mixed them up."""
    first = publisher.add(model(tmp_path, "1.0.0"))
    targets = publisher.targets()
    [target] = targets.targets.values()
    target.path = f"models/{FLEET}/pump-9.0.0.bundle"
    target.custom[manifest.KEY]["version"] = "9.0.0"
    place = publisher.workshop.place(target)
    place.write_bytes((place.with_name(place.name.replace("9.0.0", "1.0.0"))).read_bytes())
    targets.targets = {target.path: target}
    role = models_role(FLEET)
    publisher.forge(role, targets, publisher.keys.of(role))
    supply = box.supply(server.repository(), unwrapper=vault(key))
    supply.bring(first)
    with pytest.raises(ManifestError, match="another key or another purpose"):
        supply.make(first)


def test_a_sealed_delta_that_does_not_open_is_gone_around(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    keys = vault(key)
    noise = random.Random(1).randbytes(50_000)
    first = publisher.add(model(tmp_path, "1.0.0", noise))
    install(box.supply(server.repository(), unwrapper=keys), box, first)
    second = publisher.add(model(tmp_path, "2.0.0", b"new" + noise))
    goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)
    targets = publisher.workshop.targets(models_role(FLEET))
    [delta] = [target for path, target in targets.targets.items() if path.endswith(".delta")]
    whole = targets.targets[f"models/{FLEET}/pump-2.0.0.bundle"]
    delta.custom[manifest.KEY]["sealed"] = whole.custom[manifest.KEY]["sealed"]
    publisher.workshop.stage(models_role(FLEET), targets)
    publisher.publish()
    supply = box.supply(server.repository(), unwrapper=keys)
    assert supply.route(second.bundle, supply.offers()[0]).kind == "delta"
    assert install(supply, box, second).is_dir()


def test_a_change_of_keys_seals_anew_and_the_open_parts_stay(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    folder = model(tmp_path, "1.0.0")
    wanted = publisher.add(folder)
    before = publisher.targets().targets[f"models/{FLEET}/pump-1.0.0.bundle"]
    assert publisher.add(folder) == wanted
    assert publisher.targets().targets[before.path].hashes == before.hashes  # nothing was made anew
    other = given_to(publisher, tmp_path / "second")
    publisher.add(folder)
    assert install(box.supply(server.repository(), unwrapper=vault(other)), box, wanted).is_dir()
    seal_for(publisher.workshop)
    publisher.add(folder)
    plain = Box(tmp_path / "plain", publisher.root)
    assert install(plain.supply(server.repository()), plain, wanted).is_dir()


def test_deltas_are_made_where_the_plain_models_are(publisher: Publisher, key: bytes, tmp_path: Path) -> None:
    added = [publisher.add(model(tmp_path, version)) for version in ("1.0.0", "2.0.0")]
    publisher.workshop.plain(added[0].bundle).unlink()
    with pytest.raises(PublishError, match="is not here"):
        goods.add_deltas(publisher.workshop, FLEET, "pump", 1, make)


def test_a_vault_that_cannot_be_asked_is_asked_later(
    publisher: Publisher, server: Server, box: Box, key: bytes, tmp_path: Path
) -> None:
    wanted = publisher.add(model(tmp_path, "1.0.0"))
    for unwrapper, what in ((FleetKeys(Locked(lambda: 0)), "locked"), (vault(b"no key"), "is no private key")):
        supply = box.supply(server.repository(), unwrapper=unwrapper)
        supply.bring(wanted)
        with pytest.raises(StorageError, match=what):
            supply.make(wanted)


class Locked(MemoryKeeper):
    def entries(self, prefix: str = "") -> NoReturn:
        raise VaultError("the vault is locked", "millwright vault open")


@pytest.mark.parametrize("line", ["", "AAAA", "no base64", "Aw=="])
def test_what_is_no_public_key_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "k.pub").write_text(line)
    with pytest.raises(PublishError):
        sealing.read_public(tmp_path / "k.pub")
