"""Boxes and an authority for tests of the enrolment: each box with a vault in memory, and a software TPM or none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from appliance.vault.certificates.enrolment import Challenge, Issued, Level, Request
from appliance.vault.certificates.identity import Account, Attestor, Identities, Identity
from appliance.vault.memory import MemoryKeeper
from hardware import attestation
from hardware.tpm import Tpm
from tests import software_tpm
from tools.certification.desk import Server
from tools.certification.office import Office

NOW = 1_795_000_000_000_000_000
DAY = 86_400_000_000_000


@dataclass
class Clock:
    now: int = NOW

    def __call__(self) -> int:
        return self.now


@dataclass
class Box:
    name: str
    office: Office
    attestor: Attestor | None = None
    level: Level = Level.KEY
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.keeper = MemoryKeeper(self.clock)
        self.identities = Identities(self.keeper, self.clock, lambda: self.attestor)
        pem = (self.office.folder / "ca.pem").read_bytes()
        self.identities.open_account(Account(self.name, authority=pem, level=self.level))

    def ask(self, token: str = "") -> Request:
        return self.identities.ask(self.office.nonce(self.clock.now), bytes.fromhex(token))

    def enrol(self, token: str = "") -> Identity:
        return self.conclude(self.office.answer(self.ask(token), self.clock.now))

    def conclude(self, answer: Challenge | Issued) -> Identity:
        if isinstance(answer, Challenge):
            answer = self.office.conclude(self.identities.prove(answer), self.clock.now)
        return self.identities.install(answer)


def office(folder: Path, rules: str = "") -> Office:
    made = Office.found(folder, "a test's authority", NOW)
    if rules:
        (folder / "rules.toml").write_text(rules)
    return made


@contextmanager
def tpm(release: bytes = b"r" * 32) -> Iterator[attestation.Attestor]:
    made = software_tpm.make()
    try:
        made.boot(release)
        yield attestation.Attestor(Tpm(made.tcti))
    finally:
        with suppress(OSError):
            made.close()


@contextmanager
def serving(made: Office, clock: Clock, port: int = 0) -> Iterator[str]:
    """The authority over HTTPS; its address."""
    server = Server(("127.0.0.1", port), made, ["127.0.0.1", "localhost"], clock)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
