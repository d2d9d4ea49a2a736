"""For `millwright update os`: what this box is to an update of its system, and where such updates come from."""

import hashlib
import platform
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from appliance.errors import MillwrightError, StoreError, VaultError
from ota import courier, fetch
from ota.errors import MissingError, OtaError
from ota.sources import Patience, Repository
from ota.system import kernel as kernels
from ota.system import release as releases
from ota.system.book import Book, Slot
from ota.system.kernel import Kernel
from ota.system.plan import Facts
from ota.system.release import Release
from ota.system.updater import NotNowError, Parts, Updater
from ota.times import StoredTimes
from ota.trust import Trust

if TYPE_CHECKING:
    from appliance.config.document import Document
    from appliance.config.schema import Config
    from appliance.vault.port import Custody
    from hardware.slots import Slots, Standing

FOLDER = "os"  # of the state folder
ROOT_KEYS = Path("/usr/share/millwright/root.json")
BOOT_KEY = Path("/usr/share/millwright/secure-boot.pem")  # with which sbverify looks at a new kernel
BOOT_FOLDERS = ("boot/EFI/Linux", "efi/EFI/Linux", "boot/efi/EFI/Linux")
ARCHITECTURES = {"x86_64": "x86-64", "aarch64": "arm64"}
MAX_ROOT_KEYS = 1 << 20
LOOK_S = 30
_ROOTHASH = re.compile(r"(?:^|\s)roothash=([0-9a-f]{64})(?=\s|$)")


@dataclass(frozen=True)
class Box:
    """This box. `root` is another file tree in tests, `slots` what they have in place of systemd's tools."""

    config: "Config"
    document: "Document"
    slots: "Slots"
    root: Path = Path("/")

    @property
    def folder(self) -> Path:
        return self.config.paths.state / FOLDER

    @property
    def architecture(self) -> str:
        return ARCHITECTURES.get(platform.machine(), platform.machine())

    @property
    def name(self) -> str:
        """Of its releases in a repository."""
        return f"{_fact(self.root, 'IMAGE_ID') or 'millwright'}-{self.architecture}"

    @cached_property
    def standing(self) -> "Standing":
        from hardware.slots import SlotError

        try:
            return self.slots.standing()
        except SlotError as error:
            raise StoreError(
                f"the slots cannot be asked: {error}", "This is for boxes that were installed from an image."
            ) from error

    @cached_property
    def kernel_file(self) -> Path:
        """Of the system that runs. StoreError."""
        entry = self.standing.entry(self.standing.running)
        paths = [self.root / folder / entry.file for folder in BOOT_FOLDERS] if entry else []
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            raise StoreError("the kernel that runs is on no boot partition", "Mount it at /boot or /efi.")
        return found

    @cached_property
    def kernel(self) -> Kernel:
        with self.kernel_file.open("rb") as file:
            return kernels.parse(mmap(file.fileno(), 0, access=ACCESS_READ))

    @property
    def roothash(self) -> str:
        """Of the root that is mounted; empty where it is not verified."""
        found = _ROOTHASH.search((self.root / "proc/cmdline").read_text())
        return found[1] if found else ""

    @property
    def old_root(self) -> Path:
        """The partition of the root that runs: its id is the first half of the root's hash."""
        half = self.roothash[:32]
        own = "-".join((half[:8], half[8:12], half[12:16], half[16:20], half[20:]))
        return self.root / "dev/disk/by-partuuid" / own

    @cached_property
    def measured(self) -> dict[str, str]:
        """PCR 11 of the release that runs, by how many phases of the boot have passed."""
        phases = range(1, len(kernels.PHASES) + 1)
        return {str(one): kernels.predicted(self.kernel, one).hex() for one in phases}


def here(config: "Config", document: "Document") -> Box:
    from hardware.slots import systemd

    return Box(config, document, systemd.Slots(staged=config.paths.state / FOLDER / "staged"))


def updater(box: Box, repository: Repository | None) -> Updater:
    """Without a repository nothing new is fetched."""
    files = (repository or Repository.within(box.folder / "nowhere")).files
    keeper = Vaulted(box)
    parts = Parts(files, Slotted(box), keeper, box.old_root, _or_none(box), verified)
    return Updater(box.folder, parts)


def _or_none(box: Box) -> Path:
    """What an update may start from; a path that is not there where that cannot be told."""
    try:
        return box.kernel_file
    except MillwrightError:
        return box.root / "nowhere"


# ---- the facts of a plan --------------------------------------------------------------------------------------------


def facts(box: Box, book: Book, release: Release) -> Facts:
    """MillwrightError, OtaError."""
    from hardware import storage

    standing, kernel = box.standing, box.kernel
    bound = vault_of(box)
    phases = Vaulted(box).phases() if bound == "tpm" else ""
    box.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Facts(
        running=standing.running,
        architecture=box.architecture,
        blessed=standing.blessed,
        complete=standing.running in standing.complete,
        committed=book.committed,
        refused=book.refused | dict.fromkeys(standing.refused, "no start of it came through"),
        at_hand=frozenset({box.roothash, _sha256(box.kernel_file)} - {""}),
        arrived=_arrived(box, release),
        free_bytes=storage.find(box.folder, box.root).free_bytes,
        slot_bytes=box.slots.capacity(),
        memory_bytes=psutil.virtual_memory().available,
        vault=bound,
        release_key=hashlib.sha256(kernel.release_key).hexdigest() if phases else "",
        signers=kernel.signers,
        phases=int(phases or 0),
        start_s=start_s(),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arrived(box: Box, release: Release) -> dict[str, int]:
    ways = [way for part in (release.root, release.kernel) for way in part.ways]
    found = {way.sha256: fetch.arrived(box.folder / "files", fetch.Wanted(way.sha256, way.length)) for way in ways}
    return {sha256: length for sha256, length in found.items() if length}


def vault_of(box: Box) -> str:
    """What binds it: `tpm` where nothing else opens it by itself; empty where there is none."""
    from appliance.vault import chest, opening

    try:
        bound = chest.bindings(box.config.paths.state / opening.FOLDER)
    except StoreError as error:
        raise VaultError(error.message, "Ask as root.") from error
    return "tpm" if bound == ("tpm",) else next((one for one in bound if one != "tpm"), "")


def start_s() -> float:
    """How long the last start took; 0 where systemd does not say."""
    command = ["systemctl", "show", "--property=FinishTimestampMonotonic", "--value"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return 0.0
    return int(said) / 1e6 if said.isdigit() else 0.0


def _fact(root: Path, key: str) -> str:
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = root / name
        if path.is_file():
            lines = path.read_text("utf-8", "replace").splitlines()
            return next((line.partition("=")[2].strip("\"' ") for line in lines if line.startswith(f"{key}=")), "")
    return ""


# ---- what the updater asks for --------------------------------------------------------------------------------------


class Slotted:
    """`Slots` of `ota.system.updater`."""

    def __init__(self, box: Box) -> None:
        self._slots = box.slots

    def slot(self, version: str) -> Slot:
        with _told():
            standing = self._slots.standing()
        entry = standing.entry(version)
        return Slot(standing.running, standing.blessed, entry is not None, entry is not None and entry.bad)

    def install(self, version: str, folder: Path) -> None:
        with _told():
            self._slots.install(version, folder)

    def withdraw(self, version: str) -> None:
        with _told():
            self._slots.withdraw(version)

    def reject(self) -> None:
        with _told():
            self._slots.reject()


@contextmanager
def _told() -> Iterator[None]:
    from hardware.slots import SlotError

    try:
        yield
    except SlotError as error:
        raise NotNowError(str(error), "It is tried again; see 'bootctl list' and systemd-sysupdate.") from error


class Vaulted:
    """`Vault` of `ota.system.updater`: the vault that runs, where one was made and a TPM binds it."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def phases(self) -> str:
        """At how many phases of the boot it opens; empty where it does not ask for PCR 11. VaultError."""
        return self._custody().expect(self._box.measured, {})

    def allow(self, pcr11: Mapping[str, str]) -> None:
        if vault_of(self._box) == "tpm":
            with _locked():
                self._custody().expect(self._box.measured, pcr11)

    def commit(self) -> None:
        if vault_of(self._box) == "tpm":
            with _locked():
                self._custody().settled()

    def _custody(self) -> "Custody":
        from appliance import assembly
        from appliance.vault import client

        return client.by_socket(assembly.vault_socket(self._box.config))


@contextmanager
def _locked() -> Iterator[None]:
    try:
        yield
    except VaultError as error:
        raise NotNowError(error.message, error.remedy) from error


def verified(kernel: Path) -> None:
    """By sbverify, where it and the key are on the box: the firmware's own look, before a restart depends on it."""
    if shutil.which("sbverify") is None or not BOOT_KEY.is_file():
        return
    done = subprocess.run(
        ["sbverify", "--cert", str(BOOT_KEY), str(kernel)], capture_output=True, text=True, timeout=LOOK_S, check=False
    )
    if done.returncode:
        raise OtaError(f"the firmware would not start this kernel: {done.stderr.strip()[-200:]}", "Publish it anew.")


# ---- repositories ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offered:
    release: Release
    signed: bytes
    repository: Repository


def offered(box: Box, version: str, place: str = "") -> Offered:
    """The release of this version, else the newest, from the first repository that has it. OtaError."""
    path = releases.path_of(box.name, version) if version else releases.newest(box.name)
    trust = Trust(box.folder / "trust", _root_keys(box), StoredTimes(box.folder / "floor.json", _past_s()))
    troubles: list[OtaError] = []
    for repository in _repositories(box, place):
        try:
            with trust.best(repository.metadata) as view:
                target = view.find(path)
                if target is None:
                    continue
                if target.wanted.length > releases.MAX_BYTES:
                    raise OtaError(f"{path} is larger than {releases.MAX_BYTES:,} bytes", "Publish it anew.")
                ready = fetch.download(repository.files, target.place, target.wanted, box.folder / "releases")
                signed = ready.read_bytes()
                ready.unlink()
                return Offered(releases.decode(signed), signed, repository)
        except OtaError as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]
    raise MissingError(f"no repository has {path}", "Name others in update.sources, or with --from.")


def _repositories(box: Box, place: str) -> Iterator[Repository]:
    addresses = [place] if place else list(box.config.update.sources)
    if not addresses:
        raise MissingError("no repository is configured", "sources = [...] in [update], or --from PLACE")
    for address in addresses:
        if "://" in address:
            context = None
            if address.startswith("https:"):
                context = ssl.create_default_context(cafile=box.config.update.ca_file or None)
            yield Repository.at(address, Patience(), context)
        else:
            base = Path(address)
            for path in sorted(Path(base.anchor).glob(str(base.relative_to(base.anchor)))):
                if found := courier.repository(path):
                    yield found


def _root_keys(box: Box) -> bytes:
    path = Path(box.config.update.root) if box.config.update.root else ROOT_KEYS
    try:
        with path.open("rb") as file:
            return file.read(MAX_ROOT_KEYS)
    except OSError as error:
        raise OtaError(
            f"no repository can be believed without {path}: {error.strerror}", "Name it: root in [update]."
        ) from error


def _past_s() -> float:
    from hardware import clock

    return clock.find(time.time()).floor_s


def install(box: Box, updater: Updater, found: Offered, tell: Callable[[str], None]) -> Book:
    """Up to the restart; `tell` hears of each step. The links that the box has are noted before, for its trial."""
    from appliance.cli import reaching
    from hardware import links

    version = found.release.version
    if version in box.standing.refused:
        Slotted(box).withdraw(version)  # or it would be left as it is, with no try left
    updater.begin(found.signed, box.standing.running, time.time_ns())
    reaching.note(box.config.paths.state, version, links.find(box.root))
    return updater.carry_on(facts(box, updater.book, found.release), time.time_ns, tell)
