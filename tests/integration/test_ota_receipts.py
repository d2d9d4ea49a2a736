"""Receipts that boxes sign, with certificates of a real authority: those alone count where it is named."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.errors import VaultError
from appliance.services.receipts import signer
from ota import courier
from ota.courier import Owed, Receipt
from ota.errors import PublishError
from ota.publish.returns import signed_by_boxes
from tests import enrolling
from tests.enrolling import NOW, Box

RULES = 'least = "software"\n'
AT_S = NOW / 1e9 + 3600


def receipt(device: str = "press-1", outcome: str = "confirmed", at_s: float = AT_S) -> Receipt:
    return Receipt(device, at_s, "pump", "1.0.0", "a" * 64, outcome)


@pytest.fixture
def office(tmp_path: Path) -> enrolling.Office:
    return enrolling.office(tmp_path / "ca", RULES)


@pytest.fixture
def box(office: enrolling.Office) -> Box:
    return enrolled(office, "press-1")


def enrolled(office: enrolling.Office, name: str) -> Box:
    made = Box(name, office, level=enrolling.Level.SOFTWARE)
    made.enrol(office.token(name, NOW))
    return made


def counted(office: enrolling.Office, *receipts: Receipt) -> int:
    return len(signed_by_boxes(receipts, office.folder / "ca.pem"))


def test_a_box_signs_its_own_receipts(office: enrolling.Office, box: Box, tmp_path: Path) -> None:
    (stick := tmp_path / "stick").mkdir()
    owed = Owed(tmp_path / "owed.json", signer(box.identities))
    owed.settle({"one": receipt()}, [stick])
    [left] = courier.receipts(stick / courier.FOLDER / "receipts")
    assert left.signature
    assert counted(office, left) == 1


def test_what_is_altered_or_of_somebody_else_does_not_count(office: enrolling.Office, box: Box, tmp_path: Path) -> None:
    mine, other = signer(box.identities), signer(enrolled(office, "press-2").identities)
    stranger = signer(enrolled(enrolling.office(tmp_path / "other", RULES), "press-1").identities)
    good = courier.signed(receipt(), mine)
    certificate, _, signature = good.signature.partition(".")
    for bad in (
        receipt(),
        replace(good, outcome="rolled-back"),
        replace(good, device="press-2"),
        courier.signed(receipt(), other),
        courier.signed(receipt("press-2"), mine),
        courier.signed(receipt(), stranger),
        courier.signed(receipt(at_s=AT_S + 1e9), mine),  # long after its certificate's end
        courier.signed(receipt(at_s=1e300), mine),
        replace(good, signature=f"{certificate}."),
        replace(good, signature=f".{signature}"),
        replace(good, signature=f"{signature}.{certificate}"),
        replace(good, signature="no base64.at all"),
        replace(good, signature=signature + "."),
    ):
        assert counted(office, bad) == 0
    assert counted(office, good, courier.signed(receipt("press-2"), other)) == 2


def test_a_box_that_is_not_enrolled_signs_nothing(office: enrolling.Office) -> None:
    assert signer(Box("press-9", office).identities)(b"x") == ""


def test_a_vault_that_does_not_answer_makes_it_unsigned(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise VaultError("the vault is locked")

    monkeypatch.setattr(box.keeper, "get", refuse)
    assert signer(box.identities)(b"x") == ""


def test_a_key_in_a_tpm_signs_too(office: enrolling.Office) -> None:
    with enrolling.tpm() as attestor:
        made = Box("press-3", office, attestor, enrolling.Level.KEY)
        made.enrol(office.token("press-3", NOW))
        assert counted(office, courier.signed(receipt("press-3"), signer(made.identities))) == 1


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_an_authority_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(PublishError):
        signed_by_boxes([receipt()], tmp_path / "ca.pem")
