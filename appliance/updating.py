"""Joins updates and this box: where they come from, what they may take of it, and what it is called.

Beside `assembly` and `binding` the only module that names adapters: those of `ota` and of `hardware`.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from appliance import __version__
from appliance.config.document import Document
from appliance.config.schema import Config
from appliance.config.updating import Update as Settings
from appliance.errors import ConfigError, StoreError
from appliance.inference.library import Library
from appliance.services import receipts
from appliance.services.offers import Offers
from appliance.services.plans import Plans
from appliance.services.trials import Shelf, Trials
from appliance.services.update import FOLDER, Hold, Update
from appliance.vault import chest, opening
from ota import campaign
from ota.campaign import Device, Window
from ota.courier import Owed
from ota.errors import OtaError, StorageError
from ota.installer import JOURNAL, Installer, Journal, Parts
from ota.local import Local
from ota.manifest import Host
from ota.origins import Origins
from ota.patching import in_a_process_of_its_own
from ota.sources import GoesOn, Patience, Repository, Source
from ota.supply import Means, Places, Supply
from ota.times import StoredTimes
from ota.trust import Trust, View
from ota.wanted import Habits, Hours, Policy

if TYPE_CHECKING:
    from appliance.bus.port import Bus
    from appliance.inference.library import Check
    from appliance.vault.certificates.identity import Identities
    from ota.sealed import Unwrapper

ROOT = Path("/usr/share/millwright/root.json")  # where the system's image has it
MAX_ROOT = 1 << 20  # bytes
ANSWER_S = 5.0  # a receipt does not wait for a vault for long


def problems(config: Config, document: Document) -> Iterator[ConfigError]:
    """What of `[update]` does not fit together."""
    settings = config.update
    if settings.sources and not settings.fleet:
        yield document.error(("update", "fleet"), "there are sources and no fleet", 'fleet = "..." in [update]')
    for address in settings.sources:
        try:
            _checked(address, settings.ca_file)
        except OtaError as error:
            yield document.error(("update", "sources"), error.message, error.remedy)


def service(config: Config, document: Document, bus: "Bus", library: Library, follows: str, check: "Check") -> Update:
    """`follows`: the name of the detector's model. ConfigError where what is configured does not fit together."""
    settings, folder = config.update, config.paths.state / FOLDER
    logging.getLogger("tuf").setLevel(logging.WARNING)  # it tells each signature that it does not need
    for problem in problems(config, document):
        raise problem
    hold = Hold()
    local = Local(folder / "arriving", hold)
    origins = Origins(settings.sources, local, _supplies(config, library, hold), partial(_web, settings.ca_file), hold)
    offers = Offers(origins, library, settings.fleet, partial(_habits, config), settings.budget_mb << 20, time.time_ns)
    trials = Trials(bus, library, follows, settings, time.time_ns, hold, offers.closed)

    def installer() -> Installer:
        return Installer(Journal(folder / JOURNAL), Parts(origins, origins, Shelf(library, check), trials, trials))

    owed = Owed(folder / "receipts.json", receipts.signer(_identities(config)))
    plans = Plans(local, offers, trials, library, settings)
    return Update(bus, installer, trials, plans, offers, hold, library, settings, owed, time.time_ns)


class Bases:
    """The bundles of the library, the shipped one among them: what deltas start from."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def at_hand(self) -> set[str]:
        return set(self._folders())

    def folder(self, digest: str) -> Path | None:
        return self._folders().get(digest)

    def _folders(self) -> dict[str, Path]:
        try:
            return {entry.digest: entry.folder for entry in self._library.entries()}
        except StoreError as error:
            raise StorageError(error.message, error.remedy) from error


class Believer:
    """The box's trust, made when it is asked for: what is wrong with its root stops no service. Threads take turns."""

    def __init__(self, trust: Callable[[], Trust]) -> None:
        self._trust, self._turn = trust, threading.Lock()

    @contextmanager
    def best(self, source: Source) -> Iterator[View]:
        with self._turn, self._trust().best(source) as view:
            yield view


def _supplies(config: Config, library: Library, hold: Hold) -> Callable[[Places], Supply]:
    settings, folder = config.update, config.paths.state / FOLDER
    apply = partial(in_a_process_of_its_own, goes_on=hold)
    means = Means(settings.budget_mb << 20, _host(), apply, _unwrapper(config))
    times: list[StoredTimes] = []  # one: it counts on from when it was made

    def trust() -> Trust:
        if not times:
            times.append(StoredTimes(folder / "floor.json", _build_s()))
        return Trust(folder / "trust", _root(config), times[0])

    believer, bases = Believer(trust), Bases(library)
    return lambda places: Supply(believer, places, settings.fleet, bases, folder / "supply", means)


def _identities(config: Config) -> "Identities":
    from appliance.vault import client
    from appliance.vault.certificates.identity import Identities
    from hardware import attestation, tpm

    def attestor() -> attestation.Attestor | None:
        found = tpm.find()
        return attestation.Attestor(tpm.Tpm(found.tcti)) if found.usable else None

    return Identities(client.by_socket(_socket(config), ANSWER_S), time.time_ns, attestor)


def _socket(config: Config) -> Path:
    from appliance.vault import protocol

    return Path(config.vault.socket) if config.vault.socket else config.paths.run / protocol.SOCKET


def _unwrapper(config: Config) -> "Unwrapper | None":
    """The fleet's keys, in the vault that runs; None where none was made: then nothing that is encrypted is taken."""
    from appliance.services.unwrapping import FleetKeys
    from appliance.vault import client

    socket = _socket(config)
    try:
        has_vault = socket.exists() or chest.exists(config.paths.state / opening.FOLDER)
    except StoreError:  # where this user may not look, there is one
        has_vault = True
    return FleetKeys(client.by_socket(socket)) if has_vault else None


def _web(ca_file: str, url: str, goes_on: GoesOn) -> Repository:
    context = None
    if url.startswith("https:"):
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except OSError as error:
            raise StorageError(f"{ca_file}: {error.strerror or error}", "Mend ca_file in [update].") from error
    return Repository.at(url, Patience(), context, goes_on)


def _checked(address: str, ca_file: str) -> None:
    """OtaError where it can be no place."""
    if not address.startswith("/"):
        _web(ca_file, address, lambda: None)


def _root(config: Config) -> bytes:
    """Whose keys are trusted first. StorageError where it cannot be read: then no repository can be believed."""
    path = Path(config.update.root) if config.update.root else ROOT
    try:
        with path.open("rb") as file:
            return file.read(MAX_ROOT)
    except OSError as error:
        raise StorageError(
            f"no repository can be believed without {path}: {error.strerror}",
            "Copy metadata/1.root.json of the repository there by a way that you trust, or name it: root in [update].",
        ) from error


def _build_s() -> float:
    """A time that has certainly passed, seconds since 1970."""
    from hardware import clock

    return clock.find(time.time()).floor_s


def _host() -> Host:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Host(__version__, memory)


def _habits(config: Config) -> Habits:
    """OSError where this box has no id, and none can be made."""
    from hardware import identity

    settings = config.update
    secret = config.paths.state / opening.FOLDER / "host-secret"
    device = settings.device or identity.Box(host_secret=secret).box_id(create=True)
    return Habits(Device(device, settings.labels), Policy(settings.automatic), hours(settings))


def hours(settings: Settings) -> Hours:
    """When this box may change by itself."""
    return Hours(tuple(map(_window, settings.windows)), tuple(map(_window, settings.never)))


def _window(span: str) -> Window:
    """`sat sun 22:00-05:30`; the configuration has seen to its form."""
    *days, times = span.split()
    begin, _, end = times.partition("-")
    every = get_args(campaign.Day)
    return Window(begin, end, tuple(day for day in every if not days or day in days))
