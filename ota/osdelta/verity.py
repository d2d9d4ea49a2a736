"""dm-verity's tree of hashes over an image: made anew on the box, so that it need not be fetched. SHA-256, format 1.

    one block with the superblock | the topmost level | ... | the hashes of the image's own blocks

The root hash is that of the topmost block; it stands on the signed command line of the kernel. An image that was
rebuilt wrongly has another one.
"""

import hashlib
import struct
import uuid
from pathlib import Path

from ota.osdelta.form import BLOCK, MAX_BYTES, DifferenceError, Tree
from ota.osdelta.reading import chunks_of

_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
_SIGNATURE = b"verity\0\0"
_DIGEST = 32
_HASHES = BLOCK // _DIGEST
_ZERO = bytes(BLOCK)
_EMPTY = bytes(1 << 20)


def read(data: bytes) -> Tree:
    """Of the first block of a hash partition. DifferenceError where it is of another kind."""
    if len(data) < _SUPERBLOCK.size:
        raise DifferenceError("no superblock of dm-verity", "Name a hash partition.")
    signature, version, kind, own, algorithm, *blocks, count, salt_bytes, salt = _SUPERBLOCK.unpack_from(data)
    if (signature, version, kind, algorithm.rstrip(b"\0"), blocks) != (_SIGNATURE, 1, 1, b"sha256", [BLOCK, BLOCK]):
        raise DifferenceError("a tree of hashes of another form", f"SHA-256 over blocks of {BLOCK} is made here.")
    if not 0 < count <= MAX_BYTES // BLOCK or salt_bytes > len(salt):
        raise DifferenceError("a superblock that is none", "Name a hash partition.")
    return Tree(count, salt[:salt_bytes].hex(), str(uuid.UUID(bytes=own)))


def build(image: Path, tree: Tree, out: Path, length: int) -> str:
    """Write the hash partition of `length` bytes, holes behind the tree; the root hash. DifferenceError, OSError."""
    levels = levels_over(image, tree)
    size = (1 + sum(len(level) for level in levels) // BLOCK) * BLOCK
    if size > length:
        raise DifferenceError(f"a tree of {size:,} bytes does not fit in {length:,}", "Publish it anew.")
    with out.open("wb") as file:
        file.write(superblock(tree).ljust(BLOCK, b"\0"))
        for level in reversed(levels):
            file.write(level)
        file.truncate(length)
    return root_hash(levels, tree)


def superblock(tree: Tree) -> bytes:
    salt, own = bytes.fromhex(tree.salt), uuid.UUID(tree.uuid).bytes
    return _SUPERBLOCK.pack(_SIGNATURE, 1, 1, own, b"sha256", BLOCK, BLOCK, tree.blocks, len(salt), salt)


def levels_over(image: Path, tree: Tree) -> list[bytes]:
    """The levels, the lowest first; the topmost has one block."""
    salted = hashlib.sha256(bytes.fromhex(tree.salt))
    empty, hashes = _hashed(salted, _ZERO), bytearray()
    with image.open("rb") as file:
        for chunk in chunks_of(file, tree.blocks * BLOCK):
            if chunk == _EMPTY[: len(chunk)]:  # as most of a partition
                hashes += empty * (len(chunk) // BLOCK)
                continue
            for start in range(0, len(chunk), BLOCK):
                hashes += _hashed(salted, chunk[start : start + BLOCK])
    levels = [_filled(hashes)]
    while len(levels[-1]) > BLOCK:
        below = levels[-1]
        above = b"".join(_hashed(salted, below[at : at + BLOCK]) for at in range(0, len(below), BLOCK))
        levels.append(_filled(above))
    return levels


def root_hash(levels: list[bytes], tree: Tree) -> str:
    return _hashed(hashlib.sha256(bytes.fromhex(tree.salt)), levels[-1]).hex()


def _hashed(salted: "hashlib._Hash", block: bytes) -> bytes:
    found = salted.copy()
    found.update(block)
    return found.digest()


def _filled(hashes: bytes | bytearray) -> bytes:
    return bytes(hashes).ljust(-(-len(hashes) // BLOCK) * BLOCK, b"\0")


assert _SUPERBLOCK.size == 512
