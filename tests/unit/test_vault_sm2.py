"""SM2 by the system's libcrypto, checked with the figures of GB/T 32918.5 and by the mathematics written out here."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import SealError, VaultError
from appliance.vault import sm2

# The curve of GB/T 32918.5, and its example A.2: a key, and the signature of "message digest" by 1234567812345678.
P = 0xFFFFFFFE_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_00000000_FFFFFFFF_FFFFFFFF
A = P - 3
B = 0x28E9FA9E_9D9F5E34_4D5A9E4B_CF6509A7_F39789F5_15AB8F92_DDBCBD41_4D940E93
N = 0xFFFFFFFE_FFFFFFFF_FFFFFFFF_FFFFFFFF_7203DF6B_21C6052B_53BBF409_39D54123
G = (
    0x32C4AE2C_1F198119_5F990446_6A39C994_8FE30BBF_F2660BE1_715A4589_334C74C7,
    0xBC3736A2_F4F6779C_59BDCEE3_6B692153_D0A9877C_C62A4740_02DF32E5_2139F0A0,
)
PRIVATE = 0x3945208F_7B2144B1_3F36E38A_C6D39F95_88939369_2860B51A_42FB81EF_4DF7C5B8
PUBLIC = (
    0x09F9DF31_1E5421A1_50DD7D16_1E4BC5C6_72179FAD_1833FC07_6BB08FF3_56F35020,
    0xCCEA490C_E26775A5_2DC6EA71_8CC1AA60_0AED05FB_F35E084A_6632F607_2DA9AD13,
)
R = 0xF5A03B06_48D2C463_0EEAC513_E1BB81A1_5944DA38_27D5B741_43AC7EAC_EEE720B3
S = 0xB1B6AA29_DF212FD8_763182BC_0D421CA1_BB9038FD_1F7F42D4_840B69C4_85BBC1AA
MESSAGE = b"message digest"

Point = tuple[int, int] | None


def number(value: int) -> bytes:
    return value.to_bytes(32, "big")


def sequence(*numbers: int) -> bytes:
    """DER of a sequence of positive numbers."""
    parts = [value.to_bytes(value.bit_length() // 8 + 1, "big") for value in numbers]
    body = b"".join(b"\x02" + bytes((len(part),)) + part for part in parts)
    return b"\x30" + bytes((len(body),)) + body


def numbers(signature: bytes) -> tuple[int, int]:
    """r and s of a signature's DER."""
    length = signature[3]
    return int.from_bytes(signature[4 : 4 + length], "big"), int.from_bytes(signature[6 + length :], "big")


def public_der(point: tuple[int, int]) -> bytes:
    head = bytes.fromhex("3059301306072a8648ce3d020106082a811ccf5501822d03420004")
    return head + number(point[0]) + number(point[1])


def private_der(private: int, point: tuple[int, int]) -> bytes:
    head = bytes.fromhex("308187020100301306072a8648ce3d020106082a811ccf5501822d046d306b0201010420")
    return head + number(private) + bytes.fromhex("a14403420004") + number(point[0]) + number(point[1])


def add(one: Point, two: Point) -> Point:
    if one is None or two is None:
        return one or two
    if one[0] == two[0]:
        if (one[1] + two[1]) % P == 0:
            return None
        slope = (3 * one[0] * one[0] + A) * pow(2 * one[1], -1, P)
    else:
        slope = (two[1] - one[1]) * pow(two[0] - one[0], -1, P)
    x = (slope * slope - one[0] - two[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def times(factor: int, point: Point) -> Point:
    product: Point = None
    while factor:
        if factor & 1:
            product = add(product, point)
        point, factor = add(point, point), factor >> 1
    return product


def sm3(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


def verified(point: tuple[int, int], message: bytes, r: int, s: int) -> bool:
    """GB/T 32918.2, 7.1, without any library of curves."""
    own = b"".join(number(value) for value in (A, B, *G, *point))
    z = sm3((8 * len(sm2.ID)).to_bytes(2, "big") + sm2.ID + own)
    e = int.from_bytes(sm3(z + message), "big")
    found = add(times(s, G), times((r + s) % N, point))
    return 0 < r < N and 0 < s < N and found is not None and (e + found[0]) % N == r


def test_the_standards_signature_is_verified() -> None:
    assert verified(PUBLIC, MESSAGE, R, S)
    sm2.verify(public_der(PUBLIC), MESSAGE, sequence(R, S))
    for message, r, s in ((b"message digesT", R, S), (MESSAGE, R ^ 1, S), (MESSAGE, R, S ^ 1), (MESSAGE, S, R)):
        with pytest.raises(SealError, match="not this key's"):
            sm2.verify(public_der(PUBLIC), message, sequence(r, s))


def test_the_standards_key_signs_what_the_mathematics_verify() -> None:
    for message in (MESSAGE, b"", b"\0" * 100_000):
        signature = sm2.sign(private_der(PRIVATE, PUBLIC), message)
        assert verified(PUBLIC, message, *numbers(signature))
        sm2.verify(public_der(PUBLIC), message, signature)


def test_a_new_key_signs_and_is_verified() -> None:
    private, public = sm2.generate()
    assert sm2.generate()[0] != private
    signature = sm2.sign(private, MESSAGE)
    assert sm2.sign(private, MESSAGE) != signature
    sm2.verify(public, MESSAGE, signature)
    point = int.from_bytes(public[-64:-32], "big"), int.from_bytes(public[-32:], "big")
    assert public == public_der(point)
    assert private == private_der(int.from_bytes(private[36:68], "big"), point)
    assert verified(point, MESSAGE, *numbers(signature))
    with pytest.raises(SealError, match="not this key's"):
        sm2.verify(public_der(PUBLIC), MESSAGE, signature)


def test_openssl_itself_agrees(tmp_path: Path) -> None:
    """The command of the same name: another reader of the same files, given the same identity."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl command")
    private, public = sm2.generate()
    for name, content in (("key", public), ("signature", sm2.sign(private, MESSAGE)), ("message", MESSAGE)):
        (tmp_path / name).write_bytes(content)
    command = [program, "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key", "-rawin", "-digest", "sm3"]
    command += ["-in", "message", "-sigfile", "signature", "-pkeyopt", f"distid:{sm2.ID.decode()}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "Verified Successfully" in done.stdout, done.stderr


def other_key() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_keys_that_are_none_arerefused() -> None:
    p256, p256_public = other_key()
    for der in (b"", b"x", bytes(2000), p256, public_der(PUBLIC), private_der(PRIVATE, PUBLIC)[:-1]):
        with pytest.raises(SealError, match="key"):
            sm2.sign(der, MESSAGE)
    with pytest.raises(SealError, match="more than one"):
        sm2.sign(private_der(PRIVATE, PUBLIC) + b"\0", MESSAGE)
    for scalar in (0, N, PRIVATE + 1):
        with pytest.raises(SealError, match="key"):
            sm2.sign(private_der(scalar, PUBLIC), MESSAGE)
    off_the_curve = public_der((PUBLIC[0], PUBLIC[1] ^ 1))
    for der in (b"", b"x", bytes(2000), p256_public, off_the_curve, public_der(PUBLIC) + b"\0", public_der((0, 0))):
        with pytest.raises(SealError, match="key"):
            sm2.verify(der, MESSAGE, sequence(R, S))


def test_signatures_that_are_none_arerefused() -> None:
    good = sequence(R, S)
    for bad in (b"", b"\x30", good[:-1], good + b"\0", sequence(0, S), sequence(R, 0), sequence(R, S + N), bytes(200)):
        with pytest.raises(SealError, match="not this key's"):
            sm2.verify(public_der(PUBLIC), MESSAGE, bad)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=160) | st.integers(0, 8 * 72 - 1), st.booleans())
def test_whatever_else_is_no_signature_and_no_key(harm: bytes | int, key: bool) -> None:
    """Random bytes, or the right ones with one bit changed."""
    right = public_der(PUBLIC) if key else sequence(R, S)
    other = harm if isinstance(harm, bytes) else bytearray(right)
    if isinstance(other, bytearray) and isinstance(harm, int):
        other[harm // 8 % len(right)] ^= 1 << harm % 8
    with pytest.raises(SealError):
        sm2.verify(bytes(other) if key else public_der(PUBLIC), MESSAGE, sequence(R, S) if key else bytes(other))


def test_a_library_that_is_missing_or_another_is_named() -> None:
    with pytest.raises(VaultError, match=r"libcrypto\.so\.0 is not there\n  -> install OpenSSL 3"):
        sm2.load("libcrypto.so.0")
    with pytest.raises(VaultError, match=r"libc\.so\.6 is another"):
        sm2.load("libc.so.6")


class MallInfo(ctypes.Structure):
    """Of mallinfo2(3): ten numbers, of which the fifth counts what is mapped and the eighth what else is in use."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


def in_use() -> int:
    """Bytes that malloc has handed out to this thread."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library does not count what it hands out (glibc 2.33 does)")
    libc.mallinfo2.restype = MallInfo
    counted = libc.mallinfo2().numbers
    return int(counted[4] + counted[7])


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(SealError):
        call()


def test_nothing_is_leaked() -> None:
    private, public = sm2.generate()
    signature = sm2.sign(private, MESSAGE)

    def everything() -> None:
        sm2.generate()
        sm2.verify(public, MESSAGE, sm2.sign(private, MESSAGE))
        refused(lambda: sm2.verify(public, b"another", signature))
        refused(lambda: sm2.verify(public, MESSAGE, b""))
        refused(lambda: sm2.verify(public[:-1] + bytes((public[-1] ^ 1,)), MESSAGE, signature))
        refused(lambda: sm2.sign(private[:40], MESSAGE))
        refused(lambda: sm2.sign(private + b"\0", MESSAGE))

    rounds = 200
    for _ in range(20):
        everything()
    before = in_use()
    for _ in range(rounds):
        everything()
    assert in_use() - before < rounds * 40  # the smallest object that could be lost has more, once a round


def test_sm3_gives_the_figures_of_gbt_32905() -> None:
    assert sm3(b"abc").hex() == "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert sm3(b"abcd" * 16).hex() == "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"
