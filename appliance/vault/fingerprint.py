"""A key that opens with the secrets a box keeps and any k of the n parts it was sealed with. Pure, but for salts.

    joint  = Argon2id(every secret, and k parts sorted by kind and value; salt)       one for each k-subset
    wrap   = sealed(joint, key, aad = header)                                          C(n, k) of them, see `suites`
    blob   = header, wraps, sealed(key, a code of each part, aad = header), checksum   canonical CBOR
    header = format, suite, salt, k, cost of Argon2id, a check of each secret, which part each slot is

There is nothing in the blob by which one part alone could be tried: shares of each part, or a hash of each, would be
guessed one after the other (2^24 in 21 s). So where the box does not open, only what is no secret can be named: parts
that are gone, or that are of another model now. A secret has 256 random bits and may have its check: it is named
exactly. Where the box does open, the codes sealed under the key name every part that changed.

The header is bound into every wrap by suite, and by its own bytes: with another k, cost or slot nothing opens. Nothing
of it is believed beyond the bounds below, and no memory is taken before they are checked.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import cbor2
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from appliance.errors import BindingError, SealError
from appliance.vault import suites
from appliance.vault.canonical import Reader
from appliance.vault.factors import KINDS, MAX_FACTORS, Factor, Slot
from appliance.vault.port import KEY_BYTES, MAX_BLOB_BYTES

FORMAT = 1
SALT_BYTES = 32
CODE_BYTES = 16
MAX_TRIES = 128  # of Argon2id at one opening
WRAP_BYTES = KEY_BYTES + suites.OVERHEAD_BYTES
SECRETS = ("host", "uefi")

MIN_MEMORY_KIB, MAX_MEMORY_KIB = 8 << 10, 256 << 10
MAX_ITERATIONS = 8
MAX_WORK_KIB = 512 << 10  # memory times iterations, of one try
_CHECKSUM_BYTES = 8
_HEADER_BYTES = 2048
_TEXT_BYTES = 160  # 40 characters of up to four bytes

RECOVER = "Put the old parts back, or open it with the recovery key: millwright vault recover."


@dataclass(frozen=True)
class Cost:
    """Of one try with Argon2id, one lane."""

    memory_kib: int = 64 << 10
    iterations: int = 2


@dataclass(frozen=True)
class Header:
    suite: int
    salt: bytes
    needed: int
    cost: Cost
    checks: Mapping[str, bytes]  # of each secret that is always wanted, by its name in SECRETS
    slots: tuple[Slot, ...]

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        """Slots of each wrap, in the order in which they are kept and tried."""
        return list(combinations(range(len(self.slots)), self.needed))


@dataclass(frozen=True)
class Blob:
    header: Header
    raw_header: bytes
    wraps: tuple[bytes, ...]
    codes: bytes  # sealed under the key
    sound: bool  # the checksum fits: it tells rot, not malice


@dataclass(frozen=True)
class Unlocked:
    key: bytes
    changed: tuple[Slot, ...]  # slots whose part is not in the box any more
    tries: int
    damaged: bool = False  # a part of the blob has rotted: seal it anew


def affordable(memory_kib: int, wanted_kib: int = Cost.memory_kib) -> Cost:
    """For a box of so much memory (0: not known): an eighth of it at most, so that a small router opens, too."""
    most = memory_kib // 8 or wanted_kib
    return Cost(max(MIN_MEMORY_KIB, min(wanted_kib, most)))


def seal(
    key: bytes,
    secrets: Mapping[str, bytes],
    factors: Sequence[Factor],
    needed: int,
    salt: bytes,
    cost: Cost | None = None,
    suite: suites.Suite = suites.AES,
) -> bytes:
    """The blob. `salt` is SALT_BYTES fresh random bytes; `secrets` are named as in SECRETS."""
    if not 0 <= needed <= len(factors) <= MAX_FACTORS or set(secrets) - set(SECRETS) or "host" not in secrets:
        raise ValueError(f"{needed} of {len(factors)} factors and secrets {sorted(secrets)} cannot be sealed with")
    checks = {name: _check(suite, secret, name, salt) for name, secret in secrets.items()}
    header = Header(suite.id, salt, needed, cost or Cost(), checks, tuple(factor.slot for factor in factors))
    raw = _encode_header(header)
    subsets = ([factors[index] for index in subset] for subset in header.subsets)
    wraps = [suite.seal(_joint(header, secrets, subset), key, raw) for subset in subsets]
    codes = suite.seal(key, b"".join(_code(suite, key, factor, salt) for factor in factors), raw)
    body = cbor2.dumps([raw, b"".join(wraps), codes], canonical=True)
    return body + hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def unlock(raw: bytes, secrets: Mapping[str, bytes | None], found: Sequence[Factor]) -> Unlocked:
    """The key, by what the box has now; a secret that is None is not there.

    BindingError says what moved, as far as that can be known; SealError where the blob is damaged or hostile.
    """
    blob = parse(raw)
    present = _present(blob, secrets)
    for tries, subset in enumerate(_likely(blob.header, found), 1):
        key = _opened(blob, _joint(blob.header, present, subset))
        if key is not None:
            return _unlocked(blob, key, found, tries)
    if not blob.sound:
        raise SealError("the box's binding is damaged", "Open it with the recovery key: millwright vault recover.")
    raise BindingError(_refusal(blob.header, found), RECOVER)


def parse(raw: bytes) -> Blob:
    """SealError where it is not one of ours, or asks for more than the bounds allow."""
    if not _CHECKSUM_BYTES < len(raw) <= MAX_BLOB_BYTES:
        raise SealError(f"{len(raw)} bytes are too few or too many for a box's binding")
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    reader = Reader(body)
    reader.array(3)
    raw_header = reader.string(1, _HEADER_BYTES)
    header = _decode_header(raw_header)
    size = comb(len(header.slots), header.needed) * WRAP_BYTES
    wraps = reader.string(size, size)
    codes_size = len(header.slots) * CODE_BYTES + suites.OVERHEAD_BYTES
    codes = reader.string(codes_size, codes_size)
    reader.end()
    each = tuple(wraps[at : at + WRAP_BYTES] for at in range(0, size, WRAP_BYTES))
    return Blob(header, raw_header, each, codes, hashlib.sha256(body).digest()[:_CHECKSUM_BYTES] == checksum)


def _encode_header(header: Header) -> bytes:
    slots = [[text.encode() for text in (slot.kind, slot.place, slot.model)] for slot in header.slots]
    checks = [[SECRETS.index(name), header.checks[name]] for name in sorted(header.checks)]
    cost = [header.cost.memory_kib, header.cost.iterations]
    return cbor2.dumps(
        [FORMAT, header.suite, header.salt, header.needed, cost, len(checks), checks, len(slots), slots], canonical=True
    )


def _decode_header(raw: bytes) -> Header:
    reader = Reader(raw)
    reader.array(9)
    if reader.number(255) != FORMAT:
        raise SealError("a binding of another format", "a newer release has sealed this: update, then open it")
    suite = suites.by_id(reader.number(255)).id
    salt = reader.string(SALT_BYTES, SALT_BYTES)
    needed = reader.number(MAX_FACTORS)
    cost = _decode_cost(reader)
    checks = _decode_checks(reader)
    slots = _decode_slots(reader)
    reader.end()
    if needed > len(slots):
        raise SealError(f"{needed} of {len(slots)} parts are wanted")
    return Header(suite, salt, needed, cost, checks, slots)


def _decode_cost(reader: Reader) -> Cost:
    reader.array(2)
    cost = Cost(reader.number(MAX_MEMORY_KIB), reader.number(MAX_ITERATIONS))
    if cost.memory_kib < MIN_MEMORY_KIB or not 0 < cost.iterations * cost.memory_kib <= MAX_WORK_KIB:
        raise SealError(f"{cost.memory_kib} KiB in {cost.iterations} rounds are too little or too much to be ours")
    return cost


def _decode_checks(reader: Reader) -> dict[str, bytes]:
    count = reader.number(len(SECRETS))
    reader.array(count)
    checks: dict[str, bytes] = {}
    for _ in range(count):
        reader.array(2)
        name = SECRETS[reader.number(len(SECRETS) - 1)]
        checks[name] = reader.string(CODE_BYTES, CODE_BYTES)
    if "host" not in checks or len(checks) != count:
        raise SealError("a binding without a host secret")
    return checks


def _decode_slots(reader: Reader) -> tuple[Slot, ...]:
    count = reader.number(MAX_FACTORS)
    reader.array(count)
    slots = []
    for _ in range(count):
        reader.array(3)
        kind, place, model = (reader.string(0, _TEXT_BYTES).decode("utf-8", "replace") for _ in range(3))
        if kind not in KINDS:
            raise SealError("a part of a kind that is not known", "a newer release has sealed this: update first")
        slots.append(Slot(kind, _shown(place), _shown(model)))
    return tuple(slots)


def _shown(text: str) -> str:
    """Fit for a terminal, whoever wrote it."""
    return "".join(letter for letter in text if letter.isprintable())


def _check(suite: suites.Suite, secret: bytes, name: str, salt: bytes) -> bytes:
    return suite.derive(secret, f"millwright/fingerprint/check/{name}".encode(), CODE_BYTES, salt)


def _code(suite: suites.Suite, key: bytes, factor: Factor, salt: bytes) -> bytes:
    named = cbor2.dumps(["millwright/fingerprint/part", salt, factor.slot.kind, factor.value], canonical=True)
    return suite.mac(key, named)[:CODE_BYTES]


def _joint(header: Header, secrets: Mapping[str, bytes], subset: Sequence[Factor]) -> bytes:
    """Places are left out: a disk in another socket is the same disk."""
    parts = sorted([factor.slot.kind, factor.value] for factor in subset)
    named = [[name, secrets[name]] for name in sorted(header.checks)]
    password = cbor2.dumps(["millwright/fingerprint/joint", named, parts], canonical=True)
    cost = header.cost
    hard = Argon2id(
        salt=header.salt, length=KEY_BYTES, iterations=cost.iterations, lanes=1, memory_cost=cost.memory_kib
    )
    try:
        return hard.derive(password)
    except MemoryError:
        raise BindingError(
            f"there are no {cost.memory_kib >> 10} MiB of memory to open the vault with", "Stop something, then retry."
        ) from None


def _present(blob: Blob, secrets: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Every secret that is wanted, and that it is the one; before any memory is taken."""
    suite = suites.by_id(blob.header.suite)
    present: dict[str, bytes] = {}
    for name, check in blob.header.checks.items():
        secret = secrets.get(name)
        if secret is None:
            raise BindingError(f"{_SECRET_WORDS[name]} is gone", _SECRET_REMEDIES[name])
        if not hmac.compare_digest(_check(suite, secret, name, blob.header.salt), check):
            if not blob.sound:
                raise SealError("the box's binding is damaged", RECOVER)
            raise BindingError(f"{_SECRET_WORDS[name]} is another one", _SECRET_REMEDIES[name])
        present[name] = secret
    return present


_SECRET_WORDS = {
    "host": "the host secret that the vault was sealed with",
    "uefi": "the secret in the UEFI variables that the vault was sealed with",
}
_SECRET_REMEDIES = {
    "host": "It is a file beside the vault: this vault was copied from another box, or the file was lost. " + RECOVER,
    "uefi": "Resetting or reflashing the firmware clears it, another main board or another box has another. Open the "
    "vault with the recovery key: millwright vault recover.",
}


def _likely(header: Header, found: Sequence[Factor]) -> Iterator[tuple[Factor, ...]]:
    """Subsets of what the box has now that some wrap may be of, the likely ones first, MAX_TRIES at most.

    A part in its old place comes before one elsewhere. Then the steady kinds come first, as they are given, so what is
    replaced most often is left out soonest.
    """
    kinds = [slot.kind for slot in header.slots]
    wanted = {_sorted(kinds[index] for index in subset) for subset in header.subsets}
    known = [factor for factor in found if factor.slot.kind in kinds]
    known.sort(key=lambda factor: _strangeness(header, factor.slot))
    fitting = (
        subset
        for subset in combinations(known, header.needed)
        if _sorted(factor.slot.kind for factor in subset) in wanted
    )
    return islice(fitting, MAX_TRIES)


def _sorted(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(kinds))


def _strangeness(header: Header, slot: Slot) -> int:
    """0 where it was sealed with such a part in this place, 1 where with another in it, 2 elsewhere."""
    if slot in header.slots:
        return 0
    return 1 if (slot.kind, slot.place) in {(known.kind, known.place) for known in header.slots} else 2


def _opened(blob: Blob, joint: bytes) -> bytes | None:
    """One damaged wrap is no more than that: another subset opens."""
    suite = suites.by_id(blob.header.suite)
    for wrap in blob.wraps:
        try:
            return suite.open(joint, wrap, blob.raw_header)
        except SealError:
            continue
    return None


def _unlocked(blob: Blob, key: bytes, found: Sequence[Factor], tries: int) -> Unlocked:
    suite = suites.by_id(blob.header.suite)
    try:
        codes = suite.open(key, blob.codes, blob.raw_header)
    except SealError:
        return Unlocked(key, (), tries, damaged=True)
    now = {_code(suite, key, factor, blob.header.salt) for factor in found}
    sealed = (codes[at : at + CODE_BYTES] for at in range(0, len(codes), CODE_BYTES))
    changed = tuple(slot for slot, code in zip(blob.header.slots, sealed, strict=True) if code not in now)
    return Unlocked(key, changed, tries, damaged=not blob.sound)


def _refusal(header: Header, found: Sequence[Factor]) -> str:
    """By what is no secret: kind, place and model of the parts then and now."""
    then, now = Counter(header.slots), Counter(factor.slot for factor in found)
    gone, come = list((then - now).elements()), list((now - then).elements())
    told = (
        f"of the {len(header.slots)} parts that the vault was sealed with, fewer than {header.needed} are in this box"
    )
    if gone:
        told += f"; gone: {', '.join(slot.words for slot in gone)}"
        instead = [slot.words for slot in come if slot.kind in {one.kind for one in gone}]
        told += f"; in their place: {', '.join(instead)}" if instead else ""
    alike = list((then & now).elements())
    if alike:
        told += f"; of the same model, and maybe others: {', '.join(slot.words for slot in alike)}"
    return told
