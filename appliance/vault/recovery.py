"""Who may open the vault without the box: holders of a recovery key, 256 bits printed on paper. Pure, but for `new`.

    K7QF-0M2X-...   18 groups of four in three rows: three characters of Crockford's base32 and one that checks the
                    group and its place. The 54 characters hold the 256 bits and 14 bits that check them all.

From the key come a private key that the vault's key is wrapped to (HPKE) and one that signs tickets (Ed25519). The
vault keeps only the public halves: a `Recipient`. A key kept elsewhere, for escrow, is the same thing; its recipient
travels as a line of text:

    recipient-1 head-office AWJh...     name, and base64url of both public keys and a checksum
"""

import base64
import binascii
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.errors import SealError, VaultError
from appliance.vault import hpke, suites
from appliance.vault.port import KEY_BYTES
from appliance.vault.secret import Secret

OWN = "recovery"  # the recipient whose key was printed when the vault was made
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
SIGNER_BYTES = 32
MAX_PUBLIC_BYTES = 2048
MAX_RECIPIENTS = 16
MAX_LINES_BYTES = 64 << 10  # of a file of recipients

GROUPS, ROW, GROUP = 18, 6, 4  # groups a key, groups a row, characters a group
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BETWEEN = re.compile(r"[\s\-\u2010-\u2015_.,:;/]+")  # whatever stands between groups
_LOOKS_LIKE = str.maketrans("OIL", "011")
_SPARE_BITS = GROUPS * (GROUP - 1) * 5 - KEY_BYTES * 8
_CHECKED = b"millwright/recovery/1\0"
_LINE, _SUM_BYTES = "recipient-1", 4


@dataclass(frozen=True)
class Recipient:
    """The public half of a recovery key."""

    name: str
    public: bytes  # of hpke
    signer: bytes  # Ed25519

    def line(self) -> str:
        """As it stands in a file of recipients."""
        keys = self.signer + self.public
        return f"{_LINE} {self.name} {base64.urlsafe_b64encode(keys + _sum(self.name, keys)).rstrip(b'=').decode()}"

    def wrap(self, key: Secret, info: bytes) -> bytes:
        """For the holder alone. VaultError where the key is none that can be wrapped to."""
        return hpke.wrap(self.public, key.reveal(), info)

    def verify(self, signature: bytes, data: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.signer).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


class RecoveryKey:
    """Shows itself only where `printed` is asked for."""

    __slots__ = ("_seed",)

    def __init__(self, seed: Secret) -> None:
        if len(seed.reveal()) != KEY_BYTES:
            raise ValueError(f"a recovery key has {KEY_BYTES} bytes")
        self._seed = seed

    @classmethod
    def new(cls) -> "RecoveryKey":
        return cls(Secret(os.urandom(KEY_BYTES)))

    @classmethod
    def read(cls, text: str) -> "RecoveryKey":
        """What a person typed: case, spaces, dashes, and O for 0, I or L for 1 do not matter.

        VaultError names the groups that cannot be right.
        """
        return cls(Secret(_key_of(_groups(text))))

    def printed(self) -> str:
        """Three rows of six groups. Shown once and kept nowhere."""
        groups = _groups_of(self._seed.reveal())
        return "\n".join("-".join(groups[at : at + ROW]) for at in range(0, GROUPS, ROW))

    def recipient(self, name: str = OWN, kind: hpke.Kind = "x25519") -> Recipient:
        """VaultError where the name is none."""
        _, public = self._pair(kind)
        return Recipient(checked_name(name), public, self._signer().public_key().public_bytes_raw())

    def unwrap(self, recipient: Recipient, wrapped: bytes, info: bytes) -> Secret:
        """What was wrapped to `recipient`, which is of this key. SealError."""
        private, _ = self._pair(hpke.kind_of(recipient.public))
        return Secret(hpke.unwrap(private, wrapped, info))

    def voucher(self) -> Secret:
        """What the vault and the holder of this key share, so that he knows the vault's own wraps."""
        return Secret(self._derive(b"voucher"))

    def sign(self, data: bytes) -> bytes:
        """64 bytes that `Recipient.verify` accepts."""
        return self._signer().sign(data)

    def is_of(self, recipient: Recipient) -> bool:
        return self._signer().public_key().public_bytes_raw() == recipient.signer

    def _pair(self, kind: hpke.Kind) -> tuple[bytes, bytes]:
        return hpke.from_seed(self._derive(b"recipient"), kind)

    def _signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._derive(b"signer"))

    def _derive(self, use: bytes) -> bytes:
        return suites.AES.derive(self._seed.reveal(), b"millwright/recovery/1/" + use)

    def __repr__(self) -> str:
        return "RecoveryKey(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a recovery key is not pickled")


def read_recipients(text: str) -> tuple[Recipient, ...]:
    """One a line; empty lines and what follows a `#` are left out. VaultError names the line."""
    if len(text) > MAX_LINES_BYTES:
        raise VaultError(f"a file of recipients has at most {MAX_LINES_BYTES} bytes", "Is it the right file?")
    lines = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1))
    return distinct(_recipient(line, number) for number, line in lines if line)


def distinct(recipients: Iterable[Recipient]) -> tuple[Recipient, ...]:
    """VaultError where two have one name or one key, or there are too many."""
    found = tuple(recipients)
    for what in ({one.name for one in found}, {one.public for one in found}, {one.signer for one in found}):
        if len(what) != len(found):
            raise VaultError("two recipients have the same name or the same key", "Leave one of them out.")
    if len(found) > MAX_RECIPIENTS:
        raise VaultError(f"{len(found)} recipients; a vault has at most {MAX_RECIPIENTS}", "Leave some of them out.")
    return found


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise VaultError(f"{name[:64]!r} cannot name a recipient", "Use 1 to 64 of a-z, 0-9, dot, dash and underscore.")
    return name


# ---- the printed form -----------------------------------------------------------------------------------------------


def _groups_of(key: bytes) -> list[str]:
    bits = int.from_bytes(key, "big") << _SPARE_BITS | _check_bits(key)
    groups = []
    for place in range(GROUPS):
        fifteen = bits >> 15 * (GROUPS - 1 - place) & 0x7FFF
        digits = [fifteen >> 10, fifteen >> 5 & 31, fifteen & 31]
        groups.append("".join(_ALPHABET[digit] for digit in (*digits, _check_digit(digits, place))))
    return groups


def _key_of(groups: list[str]) -> bytes:
    digits = [[_ALPHABET.find(character) for character in group] for group in groups]
    wrong = [place for place, group in enumerate(digits) if not _is_right(group, place)]
    if wrong:
        raise _mistyped([_place_words(place) for place in wrong])
    bits = 0
    for group in digits:
        for digit in group[:-1]:
            bits = bits << 5 | digit
    key = (bits >> _SPARE_BITS).to_bytes(KEY_BYTES, "big")
    if bits & (1 << _SPARE_BITS) - 1 != _check_bits(key):
        raise VaultError(
            "the recovery key does not add up: two characters or more of one group are wrong",
            "Compare every group with the printed key.",
        )
    return key


def _groups(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text[: 64 * GROUPS]).upper().translate(_LOOKS_LIKE)
    typed = _BETWEEN.sub(" ", plain).split()
    together = "".join(typed)
    if len(together) == GROUPS * GROUP:
        return [together[at : at + GROUP] for at in range(0, len(together), GROUP)]
    if len(typed) == GROUPS:
        raise _mistyped([_place_words(place) for place, group in enumerate(typed) if len(group) != GROUP])
    raise VaultError(
        f"a recovery key has {GROUPS} groups of {GROUP} characters, {GROUPS * GROUP} in all; here are {len(together)}",
        "Type all three rows.",
    )


def _is_right(digits: list[int], place: int) -> bool:
    return min(digits) >= 0 and _check_digit(digits[:-1], place) == digits[-1]


def _check_digit(digits: list[int], place: int) -> int:
    """Over GF(32): one wrong character, two that changed places, and two groups that did, all show."""
    total = _power(place)
    for exponent, digit in enumerate(digits, 1):
        total ^= _times(digit, _power(exponent))
    return total


def _times(left: int, right: int) -> int:
    product = 0
    for bit in range(5):
        if right >> bit & 1:
            product ^= left << bit
    for bit in range(8, 4, -1):
        if product >> bit & 1:
            product ^= 0b100101 << bit - 5
    return product


def _power(exponent: int) -> int:
    value = 1
    for _ in range(exponent):
        value = _times(value, 2)
    return value


def _check_bits(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(_CHECKED + key).digest()[:2], "big") >> 16 - _SPARE_BITS


def _place_words(place: int) -> str:
    return f"group {place % ROW + 1} of row {place // ROW + 1}"


def _mistyped(places: list[str]) -> VaultError:
    """Not what was typed: a message may end in a log."""
    verb = "is" if len(places) == 1 else "are"
    return VaultError(
        f"in the recovery key, {', '.join(places)} {verb} mistyped", "Compare with the printed key, then try again."
    )


# ---- a recipient's line ---------------------------------------------------------------------------------------------


def _recipient(line: str, number: int) -> Recipient:
    try:
        word, name, packed = line.split()
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        keys, claimed = raw[:-_SUM_BYTES], raw[-_SUM_BYTES:]
        if word != _LINE or _sum(name, keys) != claimed or not NAME.fullmatch(name):
            raise ValueError("another kind of line, or mistyped")
        recipient = Recipient(name, keys[SIGNER_BYTES:], keys[:SIGNER_BYTES])
        hpke.kind_of(recipient.public)
    except (ValueError, binascii.Error, SealError) as error:
        raise VaultError(
            f"line {number} is not a recipient: {error}",
            "Copy the whole line `recipient-1 NAME KEY` as it was printed.",
        ) from None
    return recipient


def _sum(name: str, keys: bytes) -> bytes:
    return hashlib.sha256(_CHECKED + name.encode() + b"\0" + keys).digest()[:_SUM_BYTES]
