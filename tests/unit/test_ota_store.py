"""Bundles by content and names that move, in the layout of the appliance's library; receipts on a stick."""

import os
from pathlib import Path

import pytest

from ota import bundle, courier
from ota.courier import Receipt
from ota.errors import FetchError, StorageError
from ota.store import PREVIOUS, Store
from tests.bundles import classifier
from tests.updates import model


def taken(store: Store, folder: Path) -> str:
    digest = bundle.digest(folder)
    store.add(folder, digest)
    return digest


def test_names_move_and_go_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    assert store.at_hand() == set()
    first, second = (taken(store, model(tmp_path, version)) for version in ("1.0.0", "2.0.0"))
    assert store.at_hand() == {first, second}
    store.use("pump", first)
    store.use("pump", second)
    store.use("pump", second)
    assert (store.target("pump"), store.target("pump", PREVIOUS)) == (second, first)
    assert store.back("pump") == first
    assert (store.target("pump"), store.target("pump", PREVIOUS)) == (first, second)
    with pytest.raises(StorageError, match="in use"):
        store.remove(second)


def test_what_is_not_what_it_says_does_not_come_in(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    with pytest.raises(StorageError):
        store.add(model(tmp_path, "1.0.0"), "0" * 64)
    assert store.at_hand() == set()
    with pytest.raises(StorageError):
        store.use("pump", "0" * 64)
    with pytest.raises(StorageError):
        store.back("pump")
    assert store.folder("../x") is None


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    digest = taken(store, model(tmp_path, "1.0.0"))
    (store.root / f".leaving-{'0' * 64}").mkdir()  # a removal that was cut off
    store.remove(digest)
    assert [path.name for path in store.root.iterdir()] == ["lock"]


def test_the_appliances_library_reads_it(tmp_path: Path) -> None:
    from appliance.inference.library import Library

    store = Store(tmp_path / "models")
    given = classifier(tmp_path / "given")
    digest = bundle.digest(given)
    store.add(given, digest)
    [entry] = Library(store.root).entries()
    assert entry.digest == digest
    store.use(entry.card.name, digest)
    assert Library(store.root).current(entry.card.name) == store.root / digest


# ---- receipts -------------------------------------------------------------------------------------------------------

RECEIPT = Receipt("box-1", 1.0, "pump", "1.0.0", "a" * 64, "confirmed")


def test_receipts_come_back(tmp_path: Path) -> None:
    signed = courier.signed(RECEIPT, lambda message: f"{len(message)}")
    for receipt in (RECEIPT, signed):
        courier.leave(tmp_path, receipt)
    found = list(courier.receipts(tmp_path / courier.FOLDER / "receipts"))
    assert found == [RECEIPT, signed]
    assert courier.message(signed) == courier.message(RECEIPT)


def test_a_stick_pulled_out_while_a_receipt_was_written_takes_the_next_one(tmp_path: Path) -> None:
    half = courier.leave(tmp_path, RECEIPT).with_name("000002.json.new")
    half.write_bytes(b'{"device": "bo')
    courier.leave(tmp_path, RECEIPT)
    assert len(list(courier.receipts(tmp_path / "millwright" / "receipts"))) == 2
    assert not half.exists()


def test_what_is_no_receipt_is_passed_over(tmp_path: Path) -> None:
    folder = courier.leave(tmp_path, RECEIPT).parent
    (folder / "000002.json").write_bytes(b"{")
    (folder / "000003.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "000004.json")
    (folder.parent / "box-2").mkdir()
    (folder.parent / "box-2" / "000001.json").write_bytes((folder / "000001.json").read_bytes())
    assert list(courier.receipts(folder.parent)) == [RECEIPT]


@pytest.mark.parametrize("device", ["../x", "", "a/b", ".."])
def test_a_device_is_a_folder_of_its_own(tmp_path: Path, device: str) -> None:
    with pytest.raises(FetchError):
        courier.leave(tmp_path, Receipt(device, 1.0, "pump", "1.0.0", "a" * 64, "confirmed"))
    assert list(tmp_path.iterdir()) == []
