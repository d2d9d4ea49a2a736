"""Over the network: who is believed to be the authority, and a certificate that renews itself, or says why not."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import assembly
from appliance.errors import RefusedError, VaultError
from appliance.services import enrolling
from appliance.services.enrolling import Renewal
from appliance.vault.certificates import authority
from appliance.vault.certificates.enrolment import Level
from appliance.vault.certificates.identity import Account, Identity
from hardware.clock import RELEASED_S
from tests.enrolling import DAY, NOW, Box, Clock, office, serving, tpm
from tools.certification.office import Office

HOUR = DAY // 24
MINUTE = HOUR // 60


@pytest.fixture
def ca(tmp_path: Path) -> Office:
    return office(tmp_path / "ca", 'least = "software"\n')


@pytest.fixture
def box(ca: Office) -> Box:
    return Box("press-2", ca, None, Level.SOFTWARE)


def enrolled(box: Box, url: str) -> Identity:
    certificate = asyncio.run(enrolling.first_contact(url, box.office.fingerprint))
    box.identities.open_account(Account("press-2", url, certificate, box.level))
    token = bytes.fromhex(box.office.token("press-2", box.clock.now))
    return asyncio.run(enrolling.enrol(box.identities, box.clock, token))


def current(box: Box) -> x509.Certificate:
    found = box.identities.current()
    assert found is not None
    return found.certificate


class TestFirstContact:
    def test_a_box_is_certified_over_the_network(self, box: Box, ca: Office) -> None:
        with serving(ca, box.clock) as url:
            assert enrolled(box, url).level == "key in software"

    def test_with_its_tpm(self, ca: Office) -> None:
        with tpm() as attestor, serving(ca, Clock()) as url:
            assert enrolled(Box("press-2", ca, attestor), url).level == "key in TPM"

    def test_another_authority_has_another_fingerprint(self, ca: Office, tmp_path: Path) -> None:
        other = office(tmp_path / "other")
        with serving(other, Clock()) as url, pytest.raises(RefusedError, match=other.fingerprint):
            asyncio.run(enrolling.first_contact(url, ca.fingerprint))

    def test_who_has_taken_the_authoritys_place_is_told_nothing(self, box: Box, ca: Office, tmp_path: Path) -> None:
        other = office(tmp_path / "other", 'least = "software"\n')
        pem = (ca.folder / "ca.pem").read_bytes()
        with serving(other, Clock()) as url:
            box.identities.open_account(Account("press-2", url, pem))
            with pytest.raises(VaultError, match="not the authority's server"):
                asyncio.run(enrolling.enrol(box.identities, box.clock))
        assert not box.identities.is_pending()

    @pytest.mark.parametrize("url", ["http://ca", "https://", "https://a:b", "https://me@ca", "https://ca/path", "ca"])
    def test_an_address_that_is_none(self, url: str) -> None:
        with pytest.raises(VaultError, match="is no address of an authority"):
            enrolling.place(url)

    def test_what_the_authority_says_is_passed_on(self, box: Box, ca: Office) -> None:
        with serving(ca, box.clock) as url:
            pem = (ca.folder / "ca.pem").read_bytes()
            box.identities.open_account(Account("press-2", url, pem))
            with pytest.raises(RefusedError, match="the authority says: nobody knows this box") as caught:
                asyncio.run(enrolling.enrol(box.identities, box.clock))
        assert "tools/ca token" in caught.value.remedy


class TestItsServer:
    def shown(self, ca: Office, now: int, name: str = "ca.example") -> bytes:
        key = authority.new_key().public_key()
        return authority.issue_server(ca.authority, key, [name], now).public_bytes(Encoding.DER)

    def test_its_own_is_believed(self, ca: Office) -> None:
        enrolling.check_server(self.shown(ca, NOW), ca.authority.certificate, "CA.example", NOW)

    def test_a_box_whose_clock_is_behind_is_not_shut_out(self, ca: Office) -> None:
        enrolling.check_server(self.shown(ca, NOW), ca.authority.certificate, "ca.example", NOW - 300 * DAY)

    def test_one_that_has_ended_is_refused(self, ca: Office) -> None:
        with pytest.raises(VaultError, match="has ended"):
            enrolling.check_server(self.shown(ca, NOW), ca.authority.certificate, "ca.example", NOW + 400 * DAY)

    def test_one_of_another_name_or_use_is_refused(self, ca: Office) -> None:
        with pytest.raises(VaultError, match=r"not called '192\.0\.2\.1'"):
            enrolling.check_server(self.shown(ca, NOW), ca.authority.certificate, "192.0.2.1", NOW)
        client = authority.issue_client(ca.authority, authority.new_key().public_key(), "ca.example", NOW)
        shown = client.public_bytes(Encoding.DER)
        with pytest.raises(VaultError, match="not the authority's server"):
            enrolling.check_server(shown, ca.authority.certificate, "ca.example", NOW)

    def test_noise_is_refused(self, ca: Office) -> None:
        for noise in (b"", b"\x30\x03abc"):
            with pytest.raises(VaultError):
                enrolling.check_server(noise, ca.authority.certificate, "ca.example", NOW)


class TestRenewal:
    def renewal(self, box: Box) -> Renewal:
        return Renewal(lambda: box.identities, box.clock)

    def test_after_two_thirds_of_its_life(self, box: Box, ca: Office) -> None:
        with serving(ca, box.clock) as url:
            first = enrolled(box, url).certificate
            renewal = self.renewal(box)
            box.clock.now += 18 * DAY
            asyncio.run(renewal.tick())
            assert current(box) == first
            box.clock.now += 3 * DAY
            asyncio.run(renewal.tick())
            assert current(box) != first
        assert renewal.trouble == ""
        detail = renewal.detail()["identity"]
        assert isinstance(detail, dict)
        assert (detail["name"], detail["level"]) == ("press-2", "key in software")

    def test_weeks_without_the_authority_do_no_harm(self, box: Box, ca: Office) -> None:
        with serving(ca, box.clock) as url:
            first = enrolled(box, url).certificate
        renewal = self.renewal(box)
        box.clock.now += 21 * DAY
        for _ in range(14 * 24 * 12):  # a tick each five minutes of two weeks
            asyncio.run(renewal.tick())
            assert current(box) == first
            box.clock.now += 5 * MINUTE
        assert "is not renewed: the authority at https://127.0.0.1" in renewal.trouble
        assert f"it ends {first.not_valid_after_utc:%Y-%m-%d}" in renewal.trouble
        with serving(ca, box.clock, int(url.rpartition(":")[2])):
            box.clock.now += 6 * HOUR
            asyncio.run(renewal.tick())
        assert renewal.trouble == ""
        assert current(box) != first

    def test_attempts_become_rarer_up_to_every_six_hours(self, box: Box, ca: Office) -> None:
        with serving(ca, box.clock) as url:
            enrolled(box, url)
        calls: list[int] = []

        identities = box.identities
        asked = identities.is_due

        def counted() -> bool:
            calls.append(box.clock.now)
            return asked()

        identities.is_due = counted  # type: ignore[method-assign]  # to see when it looks
        renewal = self.renewal(box)
        box.clock.now += 21 * DAY
        for _ in range(24 * 60):
            asyncio.run(renewal.tick())
            box.clock.now += MINUTE
        pauses = [(later - earlier) // MINUTE for earlier, later in pairwise(calls)]
        assert pauses == [5, 10, 20, 40, 80, 160, 320, 360, 360]

    def test_a_clock_that_was_set_back_does_not_stop_it(self, box: Box, ca: Office) -> None:
        with serving(ca, box.clock) as url:
            first = enrolled(box, url).certificate
            renewal = self.renewal(box)
            box.clock.now += 400 * DAY
            renewal._looked_at = box.clock.now
            box.clock.now -= 379 * DAY
            asyncio.run(renewal.tick())
            assert current(box) != first

    def test_a_box_that_is_enrolled_nowhere_is_left_alone(self, box: Box) -> None:
        renewal = self.renewal(box)
        asyncio.run(renewal.tick())
        assert (renewal.trouble, renewal.detail()) == ("", {})

    def test_what_nobody_has_thought_of_does_not_end_the_service(self, box: Box) -> None:
        def broken() -> object:
            raise RuntimeError("a defect")

        renewal = Renewal(broken, box.clock)  # type: ignore[arg-type]  # it is broken
        asyncio.run(renewal.tick())
        assert "a defect" in renewal.trouble


class TestClock:
    def test_it_is_never_before_the_build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        assert assembly.believed_time() >= RELEASED_S * 1_000_000_000

    def test_a_box_that_woke_in_1970_is_certified_and_keeps_it(self, box: Box, ca: Office) -> None:
        """Its clock stands at the floor, weeks behind the authority's."""
        box.clock.now = RELEASED_S * 1_000_000_000
        with serving(ca, Clock(NOW)) as url:
            certificate = asyncio.run(enrolling.first_contact(url, ca.fingerprint))
            box.identities.open_account(Account("press-2", url, certificate))
            token = bytes.fromhex(ca.token("press-2", NOW))
            assert asyncio.run(enrolling.enrol(box.identities, box.clock, token)).name == "press-2"

    def test_a_certificate_that_has_ended_is_not_taken(self, box: Box, ca: Office) -> None:
        box.clock.now = NOW + 200 * DAY
        with serving(ca, Clock(NOW)) as url:
            certificate = asyncio.run(enrolling.first_contact(url, ca.fingerprint))
            box.identities.open_account(Account("press-2", url, certificate))
            token = bytes.fromhex(ca.token("press-2", NOW))
            with pytest.raises(VaultError, match="has ended already"):
                asyncio.run(enrolling.enrol(box.identities, box.clock, token))
        assert box.identities.current() is None
