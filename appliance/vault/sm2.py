"""SM2 signatures over SM3 (GB/T 32918.2), by the system's OpenSSL 3: the wheel of `cryptography` has none.

    private, public = DER of PKCS #8 and of SubjectPublicKeyInfo, as `openssl genpkey -algorithm SM2` makes them
    signature       = DER of the sequence r, s

The signer's identity is pinned to ID, the one that GB/T 32918 and RFC 8998 give where nothing else is agreed: an empty
identity is one that not every library verifies. Whatever OpenSSL hands out is freed on every path.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p, create_string_buffer
from functools import cache
from typing import Any

from appliance.errors import SealError, VaultError

ID = b"1234567812345678"
MAX_KEY_BYTES = 1024  # of DER; a private key has 138
MAX_SIGNATURE_BYTES = 72  # of DER: two numbers of 33 bytes
MAX_MESSAGE_BYTES = 1 << 30

_LIBRARY = "libcrypto.so.3"
_REASON_BYTES = 256
_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # the result, then the arguments
    "ERR_clear_error": (None,),
    "ERR_error_string_n": (None, c_ulong, c_char_p, c_size_t),
    "ERR_peek_last_error": (c_ulong,),
    "EVP_DigestSign": (c_int, c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t),
    "EVP_DigestSignInit_ex": (c_int, c_void_p, c_void_p, c_char_p, c_void_p, c_char_p, c_void_p, c_void_p),
    "EVP_DigestVerify": (c_int, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t),
    "EVP_DigestVerifyInit_ex": (c_int, c_void_p, c_void_p, c_char_p, c_void_p, c_char_p, c_void_p, c_void_p),
    "EVP_MD_CTX_free": (None, c_void_p),
    "EVP_MD_CTX_new": (c_void_p,),
    "EVP_MD_CTX_set_pkey_ctx": (None, c_void_p, c_void_p),
    "EVP_PKEY2PKCS8": (c_void_p, c_void_p),
    "EVP_PKEY_CTX_free": (None, c_void_p),
    "EVP_PKEY_CTX_new_from_name": (c_void_p, c_void_p, c_char_p, c_char_p),
    "EVP_PKEY_CTX_new_from_pkey": (c_void_p, c_void_p, c_void_p, c_char_p),
    "EVP_PKEY_CTX_set1_id": (c_int, c_void_p, c_char_p, c_size_t),
    "EVP_PKEY_free": (None, c_void_p),
    "EVP_PKEY_generate": (c_int, c_void_p, POINTER(c_void_p)),
    "EVP_PKEY_is_a": (c_int, c_void_p, c_char_p),
    "EVP_PKEY_keygen_init": (c_int, c_void_p),
    "EVP_PKEY_pairwise_check": (c_int, c_void_p),
    "EVP_PKEY_public_check": (c_int, c_void_p),
    "PKCS8_PRIV_KEY_INFO_free": (None, c_void_p),
    "d2i_AutoPrivateKey": (c_void_p, c_void_p, POINTER(c_void_p), c_long),
    "d2i_PUBKEY": (c_void_p, c_void_p, POINTER(c_void_p), c_long),
    "i2d_PKCS8_PRIV_KEY_INFO": (c_int, c_void_p, POINTER(c_void_p)),
    "i2d_PUBKEY": (c_int, c_void_p, POINTER(c_void_p)),
}


def generate() -> tuple[bytes, bytes]:
    """A new private key and its public key, in DER. VaultError where the system has no OpenSSL 3 with SM2."""
    crypto = library()
    key = c_void_p()
    with _owned("EVP_PKEY_CTX", crypto.EVP_PKEY_CTX_new_from_name(None, b"SM2", None), "SM2 keys") as context:
        _done(crypto.EVP_PKEY_keygen_init(context), "a new SM2 key")
        _done(crypto.EVP_PKEY_generate(context, byref(key)), "a new SM2 key")
    with _owned("EVP_PKEY", key.value, "a new SM2 key") as pair:
        with _owned("PKCS8_PRIV_KEY_INFO", crypto.EVP_PKEY2PKCS8(pair), "the private key's DER") as info:
            private = _der(crypto.i2d_PKCS8_PRIV_KEY_INFO, info)
        return private, _der(crypto.i2d_PUBKEY, pair)


def sign(private: bytes, message: bytes) -> bytes:
    """A signature in DER, another one each time. SealError where `private` is no SM2 key."""
    _check_message(message)
    crypto = library()
    with _private_key(private) as key, _digest(key) as context:
        _done(crypto.EVP_DigestSignInit_ex(context, None, b"SM3", None, None, key, None), "an SM2 signature")
        room = c_size_t(MAX_SIGNATURE_BYTES)
        signature = create_string_buffer(MAX_SIGNATURE_BYTES)
        _done(crypto.EVP_DigestSign(context, signature, byref(room), message, len(message)), "an SM2 signature")
        return signature.raw[: room.value]


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """SealError where the signature is not this key's over this message, or is malformed."""
    _check_message(message)
    crypto = library()
    with _public_key(public) as key, _digest(key) as context:
        _done(crypto.EVP_DigestVerifyInit_ex(context, None, b"SM3", None, None, key, None), "an SM2 verification")
        fits = 0 < len(signature) <= MAX_SIGNATURE_BYTES
        if not fits or crypto.EVP_DigestVerify(context, signature, len(signature), message, len(message)) != 1:
            crypto.ERR_clear_error()
            raise SealError("an SM2 signature that is not this key's over this message")


@cache
def library() -> ctypes.CDLL:
    """The system's libcrypto with the functions that are used here. VaultError where it is missing or too old."""
    return load(_LIBRARY)


def load(name: str) -> ctypes.CDLL:
    """The library of that name. VaultError where it is missing, too old, or was built without SM2."""
    remedy = "install OpenSSL 3 (Debian: libssl3), or sign with Ed25519"
    try:
        crypto = ctypes.CDLL(name)
        for function, (result, *arguments) in _FUNCTIONS.items():
            found = getattr(crypto, function)
            found.restype, found.argtypes = result, arguments
    except OSError as error:
        raise VaultError(f"SM2 needs the system's OpenSSL 3, and {name} is not there", remedy) from error
    except AttributeError as error:
        raise VaultError(f"SM2 needs OpenSSL 3, and {name} is another: {error}", remedy) from error
    context = crypto.EVP_PKEY_CTX_new_from_name(None, b"SM2", None)
    crypto.EVP_PKEY_CTX_free(context)
    if not context:
        crypto.ERR_clear_error()
        raise VaultError(f"{name} was built without SM2", remedy)
    return crypto


@contextmanager
def _owned(kind: str, pointer: int | None, what: str) -> Iterator[int]:
    """What OpenSSL has handed out, until the block ends."""
    if not pointer:
        raise _failed(what)
    try:
        yield pointer
    finally:
        getattr(library(), f"{kind}_free")(pointer)


@contextmanager
def _digest(key: int) -> Iterator[int]:
    """A context for one signature or verification by this key, as ID."""
    crypto = library()
    with (
        _owned("EVP_PKEY_CTX", crypto.EVP_PKEY_CTX_new_from_pkey(None, key, None), "an SM2 context") as signer,
        _owned("EVP_MD_CTX", crypto.EVP_MD_CTX_new(), "an SM2 context") as context,
    ):
        _done(crypto.EVP_PKEY_CTX_set1_id(signer, ID, len(ID)), "the signer's identity")
        crypto.EVP_MD_CTX_set_pkey_ctx(context, signer)
        yield context


@contextmanager
def _private_key(der: bytes) -> Iterator[int]:
    with _key(library().d2i_AutoPrivateKey, der, "private") as key:
        _sound(library().EVP_PKEY_pairwise_check, key, "private")
        yield key


@contextmanager
def _public_key(der: bytes) -> Iterator[int]:
    with _key(library().d2i_PUBKEY, der, "public") as key:
        _sound(library().EVP_PKEY_public_check, key, "public")
        yield key


@contextmanager
def _key(decode: Any, der: bytes, what: str) -> Iterator[int]:
    """All of `der`, which is exactly one SM2 key."""
    if not 0 < len(der) <= MAX_KEY_BYTES:
        raise SealError(f"an SM2 {what} key of {len(der)} bytes, not 1 to {MAX_KEY_BYTES}")
    crypto = library()
    buffer = create_string_buffer(der, len(der))
    cursor = c_void_p(ctypes.addressof(buffer))
    pointer = decode(None, byref(cursor), len(der))
    ctypes.memset(buffer, 0, len(der))
    crypto.ERR_clear_error()
    if not pointer:
        raise SealError(f"the bytes are no {what} key")
    with _owned("EVP_PKEY", pointer, "a key") as key:
        if crypto.EVP_PKEY_is_a(key, b"SM2") != 1 or cursor.value != ctypes.addressof(buffer) + len(der):
            raise SealError(f"the bytes are no SM2 {what} key, or more than one")
        yield key


def _sound(check: Any, key: int, what: str) -> None:
    """The point is on the curve; the private number is in range and belongs to it."""
    crypto = library()
    with _owned("EVP_PKEY_CTX", crypto.EVP_PKEY_CTX_new_from_pkey(None, key, None), "an SM2 context") as context:
        if check(context) != 1:
            crypto.ERR_clear_error()
            raise SealError(f"an SM2 {what} key that is not sound")


def _der(encode: Any, pointer: int) -> bytes:
    size = encode(pointer, None)
    if not 0 < size <= MAX_KEY_BYTES:
        raise _failed("a key's DER")
    buffer = create_string_buffer(size)
    cursor = c_void_p(ctypes.addressof(buffer))
    _done(int(encode(pointer, byref(cursor)) == size), "a key's DER")
    der = buffer.raw
    ctypes.memset(buffer, 0, size)
    return der


def _check_message(message: bytes) -> None:
    if len(message) > MAX_MESSAGE_BYTES:
        raise VaultError(f"{len(message)} bytes are more than can be signed at once, {MAX_MESSAGE_BYTES}")


def _done(result: int, what: str) -> None:
    if result != 1:
        raise _failed(what)


def _failed(what: str) -> VaultError:
    crypto = library()
    reason = create_string_buffer(_REASON_BYTES)
    crypto.ERR_error_string_n(crypto.ERR_peek_last_error(), reason, _REASON_BYTES)
    crypto.ERR_clear_error()
    return VaultError(f"OpenSSL gives no {what}: {reason.value.decode(errors='replace')}")
