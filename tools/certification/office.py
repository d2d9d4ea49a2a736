"""The authority at work: its folder, what it has written down, and its answers.

    key.pem  ca.pem      its key, for its owner only, and its certificate, whose SHA-256 the boxes pin
    rules.toml           what it certifies; read at each request
    register.json        who was certified, who may be, which tokens and nonces were given out
    endorsers/*.pem      authorities of TPM makers
    revoked.pem          the list of revoked certificates, for brokers

Every change is one write of register.json, under a lock, before the answer goes out.
"""

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec import Struct, field

from appliance.errors import ConfigError, DamagedError, RefusedError, StoreError, VaultError
from appliance.runtime import files
from appliance.vault.certificates import authority, enrolment
from appliance.vault.certificates.authority import NAME, Authority
from appliance.vault.certificates.enrolment import Challenge, Issued, Proof, Request, Sealed
from tools.certification import structures
from tools.certification.judgement import Known, Rules, Verdict, judge

SECOND = 1_000_000_000  # ns
NONCE_S = 600  # of one over the network
CARRIED_NONCE_S = 14 * 86_400  # of one that is carried by hand
TOKEN_S = 30 * 86_400
WAITING = 1000  # challenges, nonces and tokens at once; the oldest make room
MAX_BYTES = 64 << 20

RULES = """\
# What this authority certifies: see tools/README.md.
least = "box"          # "key": only keys in a TPM; "box": boxes with a TPM; "software": whoever has a token
days = 30              # boxes renew after two thirds of it
# registers = {7 = ["<64 hex digits>"]}    # values that PCR 7 may have
# endorsers = true                         # the TPM's maker must be one of endorsers/*.pem
"""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    serial: str  # hex
    level: int
    box: str  # digest of the endorsement key, hex; empty without a TPM
    at: int  # UTC ns
    until: int
    revoked: bool = False


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    until: int


class Register(Struct, frozen=True, forbid_unknown_fields=True):
    format: int = 1
    issued: tuple[Entry, ...] = ()
    boxes: dict[str, str] = field(default_factory=dict)  # digest of an endorsement key -> name
    tokens: dict[str, Token] = field(default_factory=dict)  # by the token, hex
    nonces: dict[str, int] = field(default_factory=dict)  # hex -> until when


class Waiting(Struct, frozen=True):
    verdict: Verdict
    secret: bytes
    until: int


class Office:
    """`now` of every call in UTC ns. VaultError and its kinds for whom the authority refuses."""

    def __init__(self, folder: Path) -> None:
        """ConfigError where there is no authority."""
        self.folder = folder
        try:
            key = authority.load_key((folder / "key.pem").read_bytes())
            self.authority = Authority(key, x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))
        except OSError as error:
            raise ConfigError(f"{folder} has no authority: {error.strerror}", "tools/ca init DIR") from None
        self._waiting: dict[bytes, Waiting] = {}

    @classmethod
    def found(cls, folder: Path, name: str, now: int) -> "Office":
        """A new one. ConfigError where there is one already."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / "key.pem").exists():
            raise ConfigError(f"{folder} has an authority already", "Name another folder.")
        made = authority.found(name, now)
        for file, content in (
            ("rules.toml", RULES.encode()),
            ("ca.pem", authority.pem(made.certificate)),
            ("key.pem", authority.key_pem(made.key)),
        ):
            files.write_atomic(folder / file, content)
            (folder / file).chmod(0o600 if file == "key.pem" else 0o644)
        (folder / "endorsers").mkdir(exist_ok=True)
        return cls(folder)

    @property
    def fingerprint(self) -> str:
        return self.authority.certificate.fingerprint(hashes.SHA256()).hex()

    # ---- what the operator does ---------------------------------------------------------------------------------

    def token(self, name: str, now: int) -> str:
        """Good once, for a box of this name."""
        if not NAME.fullmatch(name):
            raise VaultError(f"'{name}' cannot be a box's name", "Use up to 64 of a-z 0-9 . _ -")
        token = secrets.token_hex(enrolment.TOKEN_BYTES)
        with self._changing(now) as register:
            register.tokens[token] = Token(name, now + TOKEN_S * SECOND)
        return token

    def nonce(self, now: int, seconds: int = NONCE_S) -> bytes:
        nonce = secrets.token_bytes(enrolment.NONCE_BYTES)
        with self._changing(now) as register:
            register.nonces[nonce.hex()] = now + seconds * SECOND
        return nonce

    def issued(self) -> list[Entry]:
        return list(self._register().issued)

    def revoke(self, name: str, now: int) -> int:
        """All certificates of a name; the box is known no longer. How many."""
        with self._changing(now) as register:
            hit = [one for one in register.issued if one.name == name and not one.revoked]
            if not hit:
                raise VaultError(f"no certificate of '{name}' stands", "See: tools/ca list DIR")
            register.issued = tuple(
                msgspec.structs.replace(one, revoked=True) if one in hit else one for one in register.issued
            )
            for box in [box for box, known in register.boxes.items() if known == name]:
                del register.boxes[box]
            for token in [token for token, one in register.tokens.items() if one.name == name]:
                del register.tokens[token]
        self._waiting = {bound: one for bound, one in self._waiting.items() if one.verdict.name != name}
        files.write_atomic(self.folder / "revoked.pem", self.revoked(now))
        return len(hit)

    def revoked(self, now: int) -> bytes:
        """PEM."""
        serials = [int(one.serial, 16) for one in self.issued() if one.revoked]
        return authority.revoked(self.authority, serials, now)

    # ---- what boxes ask -----------------------------------------------------------------------------------------

    def answer(self, request: Request, now: int) -> Challenge | Issued:
        """Over the network."""
        verdict = self._judged(request, now)
        if verdict.endorsement is None:
            return self._certify(verdict, now)
        secret, challenge = _challenge(verdict)
        while len(self._waiting) >= WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[verdict.bound] = Waiting(verdict, secret, now + NONCE_S * SECOND)
        return challenge

    def conclude(self, proof: Proof, now: int) -> Issued:
        """The box has opened the challenge: its attestation key is of the endorsement key that it showed."""
        waiting = self._waiting.pop(proof.binding, None)
        if waiting is None or waiting.until < now:
            raise RefusedError("no challenge waits for this answer", "Make a new request.")
        if not secrets.compare_digest(enrolment.proof(waiting.secret, proof.binding).proof, proof.proof):
            raise RefusedError("the attestation key is not of the endorsement key that was shown", "Which box is it?")
        return self._certify(waiting.verdict, now)

    def answer_by_hand(self, request: Request, now: int) -> Issued | Sealed:
        """Who is not the box that he says cannot read the answer."""
        verdict = self._judged(request, now)
        issued = self._certify(verdict, now)
        if verdict.endorsement is None:
            return issued
        secret, challenge = _challenge(verdict)
        return Sealed(challenge, enrolment.seal(secret, verdict.bound, issued.certificates))

    def server_certificate(self, names: list[str], now: int) -> tuple[bytes, bytes]:
        """For this authority's own server: key and certificate, PEM, made anew at each start and kept nowhere."""
        key = authority.new_key()
        return authority.key_pem(key), authority.pem(
            authority.issue_server(self.authority, key.public_key(), names, now)
        )

    # ---- inside -------------------------------------------------------------------------------------------------

    def _judged(self, request: Request, now: int) -> Verdict:
        with self._changing(now) as register:  # written before it is looked at: a nonce is spent by trying
            if register.nonces.pop(request.nonce.hex(), None) is None:
                raise RefusedError("the nonce is not one of this authority, or was used", "Ask for another.")
        return judge(request, self._rules(), self._known(self._register()), now)

    def _certify(self, verdict: Verdict, now: int) -> Issued:
        with self._changing(now) as register:
            if verdict.token and register.tokens.pop(verdict.token, None) is None:
                raise RefusedError("the token was used meanwhile", "Get another: tools/ca token DIR NAME.")
            certificate = self._signed(verdict, now)
            until = round(certificate.not_valid_after_utc.timestamp()) * SECOND
            serial = f"{certificate.serial_number:x}"
            entry = Entry(verdict.name, serial, verdict.level, verdict.box, now, until)
            register.issued = (*register.issued, entry)
            if verdict.box:
                register.boxes[verdict.box] = verdict.name
        return Issued(authority.pem(certificate) + authority.pem(self.authority.certificate))

    def _signed(self, verdict: Verdict, now: int) -> x509.Certificate:
        subject, use = enrolment.subject(verdict.name, verdict.level), ExtendedKeyUsageOID.CLIENT_AUTH
        builder = authority.leaf(self.authority, verdict.key, subject, now, self._rules().days, use)
        return builder.sign(self.authority.key, hashes.SHA256())

    def _rules(self) -> Rules:
        try:
            return msgspec.toml.decode((self.folder / "rules.toml").read_bytes(), type=Rules)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self.folder / 'rules.toml'}: {error}", "Mend it; tools/ca init writes one.") from None

    def _known(self, register: Register) -> Known:
        return Known(
            self.authority.certificate,
            {token: one.name for token, one in register.tokens.items()},
            register.boxes,
            frozenset(int(one.serial, 16) for one in register.issued if one.revoked),
            [
                certificate
                for path in sorted((self.folder / "endorsers").glob("*.pem"))
                for certificate in x509.load_pem_x509_certificates(path.read_bytes())
            ],
        )

    def _register(self) -> Register:
        path = self.folder / "register.json"
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=Register)
        except FileNotFoundError:
            return Register()
        except (OSError, msgspec.DecodeError) as error:
            raise DamagedError(f"{path} cannot be read: {error}", "Put back a copy.") from None

    @contextmanager
    def _changing(self, now: int) -> Iterator["_Draft"]:
        """Written at the end of the block, unless it fails. What has run out is left out."""
        try:
            with (self.folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                draft = _Draft(self._register(), now)
                yield draft
                files.write_atomic(self.folder / "register.json", msgspec.json.format(draft.encoded(), indent=1))
                (self.folder / "register.json").chmod(0o600)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror}", "Give the right to write.") from None


class _Draft:
    """A register that is being changed."""

    def __init__(self, register: Register, now: int) -> None:
        self.issued = register.issued
        self.boxes = dict(register.boxes)
        self.tokens = {token: one for token, one in register.tokens.items() if one.until >= now}
        self.nonces = {nonce: until for nonce, until in register.nonces.items() if until >= now}

    def encoded(self) -> bytes:
        tokens, nonces = list(self.tokens.items())[-WAITING:], list(self.nonces.items())[-WAITING:]
        return msgspec.json.encode(Register(1, self.issued, self.boxes, dict(tokens), dict(nonces)))


def _challenge(verdict: Verdict) -> tuple[bytes, Challenge]:
    assert verdict.endorsement is not None
    secret = structures.new_secret()
    return secret, Challenge(*structures.make_credential(verdict.endorsement, verdict.attestation_name, secret))
