"""Every backend of the vault keeps the port's promises. A new one adds its site to SITES."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import plugins
from appliance.errors import BindingError, SealError
from appliance.vault.backends import fingerprint, plain, tpm
from appliance.vault.port import KEY_BYTES, MAX_BLOB_BYTES, Backend
from appliance.vault.secret import Secret
from hardware.identity import INSTALLED
from hardware.tpm import Tpm
from tests import boxes, software_tpm

KEY = bytes(range(KEY_BYTES))


@dataclass(frozen=True)
class Site:
    """A box, a backend of it started anew each time, and a box that has a copy of its disk."""

    here: Callable[[], Backend]
    elsewhere: Callable[[], Backend]


def of_fingerprint(folder: Path) -> Site:
    boxes.box("mini_pc", folder / "here")
    twin = boxes.box("mini_pc_twin", folder / "twin")
    cheap = fingerprint.Settings(memory_mib=8)

    def elsewhere() -> Backend:
        host = folder / "here" / boxes.HOST_SECRET
        if host.exists():
            boxes.write(folder / "twin" / boxes.HOST_SECRET, host.read_bytes())
        return fingerprint.create(cheap, twin)

    return Site(lambda: fingerprint.create(cheap, boxes.at(folder / "here")), elsewhere)


def of_plain(folder: Path) -> Site:
    here, twin = (boxes.box(name, folder / name) for name in ("mini_pc", "mini_pc_twin"))
    return Site(lambda: plain.create(plain.Settings(), here), lambda: plain.create(plain.Settings(), twin))


def of_tpm(folder: Path) -> Site:
    """Proven on swtpm, not on a real TPM."""
    here, twin = software_tpm.make(), software_tpm.make()
    SOFTWARE_TPMS.extend((here, twin))
    signer, release = software_tpm.Signer(), bytes([1]) * 32
    for machine in (here, twin):
        machine.boot(release)
    files = signer.publish(folder, release)

    def at(machine: software_tpm.SoftwareTpm) -> Callable[[], Backend]:
        return lambda: tpm.create(tpm.Settings(), Tpm(machine.tcti, files))

    return Site(at(here), at(twin))


SITES: dict[str, Callable[[Path], Site]] = {"fingerprint": of_fingerprint, "plain": of_plain, "tpm": of_tpm}
SOFTWARE_TPMS: list[software_tpm.SoftwareTpm] = []


@pytest.fixture(params=SITES, scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    name: str = request.param
    yield SITES[name](tmp_path_factory.mktemp(name))
    while SOFTWARE_TPMS:
        SOFTWARE_TPMS.pop().close()


@pytest.fixture(scope="module")
def blob(site: Site) -> bytes:
    return site.here().seal(Secret(KEY))


def test_what_was_sealed_here_opens_here_after_a_restart(site: Site, blob: bytes) -> None:
    opened = site.here().open(blob)
    assert opened.key.reveal() == KEY
    assert not opened.reseal
    assert len(blob) <= MAX_BLOB_BYTES


def test_another_box_does_not_open_it(site: Site, blob: bytes) -> None:
    other = site.elsewhere()
    if other.promise.strength:
        with pytest.raises(BindingError) as caught:
            other.open(blob)
        assert caught.value.remedy
    else:
        assert other.open(blob).warnings  # it protects nothing, and says so each time


def test_the_key_stands_in_the_blob_only_where_nothing_is_promised(site: Site, blob: bytes) -> None:
    promise = site.here().promise
    assert (KEY in blob) == (promise.strength == 0)
    assert bool(promise.protects) == (promise.strength > 0)
    assert promise.does_not


def test_two_seals_open_both(site: Site, blob: bytes) -> None:
    """A rotation seals anew before it lets the old blob go."""
    other = bytes(reversed(KEY))
    again = site.here().seal(Secret(other))
    assert site.here().open(again).key.reveal() == other
    assert site.here().open(blob).key.reveal() == KEY


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_refused(site: Site, raw: bytes) -> None:
    with pytest.raises(SealError):
        site.here().open(raw)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True))
def test_a_blob_cut_short_is_refused(site: Site, blob: bytes, at: float) -> None:
    with pytest.raises(SealError):
        site.here().open(blob[: int(at * len(blob))])


def test_bytes_too_many_are_refused(site: Site, blob: bytes) -> None:
    for more in (b"\0", bytes(MAX_BLOB_BYTES)):
        with pytest.raises(SealError):
            site.here().open(blob + more)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True))
def test_an_altered_byte_never_gives_another_key(site: Site, blob: bytes, at: float) -> None:
    """Except where nothing is promised."""
    backend = site.here()
    index = int(at * len(blob))
    altered = blob[:index] + bytes([blob[index] ^ 1]) + blob[index + 1 :]
    key = opened_or_none(backend, altered)
    assert key in (None, KEY) or not backend.promise.strength


def opened_or_none(backend: Backend, blob: bytes) -> bytes | None:
    try:
        return backend.open(blob).key.reveal()
    except (SealError, BindingError):
        return None


def test_the_name_is_the_files(site: Site) -> None:
    backend = site.here()
    module = plugins.load("appliance.vault.backends", backend.name)
    assert backend.name in SITES
    assert issubclass(module.Settings, msgspec.Struct)
    assert module.Settings() == module.Settings()  # its defaults run
    assert module.__doc__
    assert "[vault]" in module.__doc__


def test_plain_is_refused_on_an_image(tmp_path: Path) -> None:
    box = boxes.box("mini_pc", tmp_path)
    backend = plain.create(plain.Settings(), box)
    blob = backend.seal(Secret(KEY))
    boxes.write(tmp_path / INSTALLED, b"")
    for attempt in (lambda: backend.seal(Secret(KEY)), lambda: backend.open(blob)):
        with pytest.raises(BindingError, match="refused on an installed box"):
            attempt()


def test_where_nothing_can_be_shut_latching_does_nothing(tmp_path: Path) -> None:
    for backend in (of_plain(tmp_path / "plain").here(), of_fingerprint(tmp_path / "fingerprint").here()):
        blob = backend.seal(Secret(KEY))
        backend.latch()
        backend.latch()
        assert backend.open(blob).key.reveal() == KEY
        assert backend.promise.does_not
