"""A vault on a TPM, both killed again and again: `python tpm_writer.py FOLDER CUTS SEED`. Proven on swtpm.

Each turn a child opens the vault with the TPM's key and counter, compares it with what was acknowledged, and then
puts, removes, rotates and changes the allow-list, until it and the TPM are killed, one before the other. Then the
machine boots the release that ran, or the one that was allowed. Prints what it did as JSON; a turn that finds something
wrong ends it.
"""

import json
import os
import random
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from appliance.binding import TranslatedCounter
from appliance.errors import BindingError, VaultError
from appliance.vault import chest
from appliance.vault.backends.tpm import Settings, TpmBackend, create
from appliance.vault.chest import Chest
from hardware.tpm import Release, Tpm
from tests import software_tpm
from tests.faults.vault_writer import NOW, Journal, change, found_in
from tests.software_tpm import Signer, SoftwareTpm, state

MAX_MS = 300  # that a child lives after it has opened the vault
OPEN_S = 60
RELEASES = [bytes([1]) * 32, bytes([2]) * 32]
LOST_TPM = 3  # exit code of a child whose TPM was killed under it


@dataclass
class Site:
    folder: Path
    machine: SoftwareTpm
    signer: Signer
    running: int = 0  # of RELEASES

    def boot(self, release: int) -> None:
        self.running = release
        self.machine.boot(RELEASES[release])
        self.signer.publish(self.folder, *RELEASES)

    @property
    def tpm(self) -> Tpm:
        return Tpm(self.machine.tcti, Release(self.folder))

    @property
    def counter(self) -> TranslatedCounter:
        return TranslatedCounter(self.tpm.counter("vault", "here"))

    def backend(self) -> TpmBackend:
        return create(Settings(), self.tpm)

    @property
    def wish(self) -> Path:
        """The release that was allowed beside the one that runs: what a restart may start."""
        return self.folder / "wish"


def opened(site: Site, backend: TpmBackend) -> Chest:
    return chest.open(site.folder / "vault", [backend], site.counter, lambda: NOW)


def turn(site: Site, dice: random.Random, ready: int) -> None:
    journal, backend = Journal(site.folder / "journal"), site.backend()
    vault = opened(site, backend)
    status, state_found, allowed = vault.status(), found_in(vault), journal.allowed()
    if state_found not in allowed or status.damaged or not status.anchored:
        raise AssertionError(f"{status}: found {state_found}, may be {allowed}")
    journal.begin(state_found)
    os.write(ready, b"!")
    while True:
        if dice.random() < 0.35:
            move(site, backend, dice)
        else:
            state_found = change(vault, journal, dice, state_found)


def move(site: Site, backend: TpmBackend, dice: random.Random) -> None:
    """An update is allowed, or the running release committed."""
    here, there = state(RELEASES[site.running]), state(RELEASES[1 - site.running])
    if dice.random() < 0.7:
        backend.allow(here, there)
        site.wish.write_text(str(1 - site.running))
    else:
        site.wish.unlink(missing_ok=True)
        backend.commit(here)


def child(site: Site, dice: random.Random, ready: int) -> None:
    """Never returns."""
    try:
        turn(site, dice, ready)
    except BindingError as error:
        (site.folder / "wrong").write_text(traceback.format_exc())
        os._exit(LOST_TPM if "does not answer" in str(error) else 1)
    except BaseException:  # noqa: BLE001  # whatever it is, the parent tells it
        (site.folder / "wrong").write_text(traceback.format_exc())
    os._exit(1)


def cut(site: Site, dice: random.Random) -> str:
    """One life of a child, and of the TPM. Which of them were killed first."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        child(site, dice, write)
    os.close(write)
    with os.fdopen(read, "rb"):
        if dice.random() > 0.2:
            select.select([read], [], [], OPEN_S)
            os.read(read, 1)
        select.select([read], [], [], dice.uniform(0, MAX_MS) / 1000)
        first = dice.choice(["opener", "tpm"])
        if first == "tpm":
            site.machine.power_cut()
            select.select([read], [], [], dice.choice([0, OPEN_S]))  # at once, or once it noticed
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and not (first == "tpm" and os.waitstatus_to_exitcode(status) == LOST_TPM):
        raise SystemExit((site.folder / "wrong").read_text())
    return first


def after(site: Site, dice: random.Random) -> None:
    """The power is back: the release that ran, or the one that was allowed."""
    allowed = [site.running, *([int(site.wish.read_text())] if site.wish.exists() and site.wish.read_text() else [])]
    site.boot(dice.choice(allowed))
    site.wish.unlink(missing_ok=True)


def run(site: Site, cuts: int, seed: str) -> dict[str, int]:
    site.boot(0)
    chest.create(site.folder / "vault", site.backend(), "aes-256-gcm", (), site.counter, lambda: NOW)[0].close()
    dice, journal = random.Random(seed), Journal(site.folder / "journal")
    counts = {"cuts": cuts, "interrupted": 0, "acknowledged": 0, "tpm_first": 0, "updates": 0}
    for _ in range(cuts):
        before, running = journal.life(), site.running
        counts["tpm_first"] += cut(site, random.Random(dice.random())) == "tpm"
        counts["interrupted"] += len(journal.allowed()) > 1
        counts["acknowledged"] += journal.acknowledged() if journal.life() != before else 0
        after(site, dice)
        counts["updates"] += site.running != running
    with opened(site, site.backend()) as vault:
        assert found_in(vault) in journal.allowed()
        counts["generation"] = vault.status().generation
    counts["lists"] = len(site.tpm.lists())
    return counts


def main(folder: Path, cuts: int, seed: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    machine = software_tpm.make()
    try:
        print(json.dumps(run(Site(folder, machine, Signer()), cuts, seed)))
    except VaultError as error:
        raise SystemExit(f"locked out: {error!r} {error}") from error
    finally:
        machine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
