"""How much memory applying a patch takes at most, from the patch itself.

A sum of what is in memory at once where most is: the libraries, a frame and what it gives, and what the way of a file
keeps from frame to frame. It is told beside the patch, so that a box knows before it fetches anything.
"""

from collections.abc import Iterator
from pathlib import Path

from ota.delta import container, plans, rans
from ota.delta.codec import Operation, Part, Segment
from ota.delta.container import Change, Frame, Way
from ota.delta.files import CHUNK, File
from ota.delta.generic import BZIP2, FRAME, MIN_WINDOW, STREAMS
from ota.delta.plans import Plan
from ota.delta.tensors import Source

LIBRARIES = 40 << 20  # bytes: the interpreter, numpy, zstandard and cbor2
_NUMBER = 40  # bytes a number of the right side of a low rank, while it is read and made ready
_ELEMENT = 112  # bytes an element of a block, by numpy; the kernel takes less
_BZIP2 = 4 << 20  # bytes that unpacking takes at its largest blocks
_COPIES = 3  # of a frame and of what it gives: as it is read, cut into parts, and joined


def needed(patch: Path) -> int:
    """Bytes; PatchError for what is no patch."""
    with File(patch) as source:
        manifest = container.read(source, source.size)
        most = max((_file(change, frames, source) for change, frames in manifest.frames()), default=0)
        return LIBRARIES + 2 * manifest.begin + most


def _file(change: Change, frames: tuple[Frame, ...], source: Source) -> int:
    if not frames:
        return CHUNK
    largest = max(frame.size for frame in frames)
    if change.way is Way.TENSORS:
        return max(_segments(change, frames, source), default=0)
    if change.way is Way.COVERS:
        return _unpacking(source.read(frames[0].offset, STREAMS)) + _COPIES * (largest + min(FRAME, change.new.size))
    if change.way is Way.DICTIONARY:
        old = change.old.size if change.old else 0
        return 2 * old + _COPIES * (largest + change.new.size)
    return CHUNK


def _unpacking(codes: bytes) -> int:
    return sum(_BZIP2 if code == BZIP2 else 1 << (code >> 2) + MIN_WINDOW for code in codes)


def _segments(change: Change, frames: tuple[Frame, ...], source: Source) -> Iterator[int]:
    """For each frame; what a tensor's blocks share stays until the next tensor begins."""
    tables = rans.SYMBOLS * rans.TOTAL // 8  # at most so many tables, and maps to them
    end = shared = kept = 0
    for frame in frames[1:]:
        segment = container.unframed(source.read(frame.offset, frame.size), end, change.new.size)
        blocks = 0
        for part in segment.parts:
            end = part.offset + part.size
            if part.operation is Operation.DELTA and part.params:
                plan = plans.parse(part.params)
                kept = shared if plan.kept else 0
                shared, blocks = _shared(plan), max(blocks, _block(plan))
        yield tables + shared + kept + blocks + _parts(segment, frame)


def _parts(segment: Segment, frame: Frame) -> int:
    if segment.is_copy:
        return CHUNK
    dictionary = max((2 * part.params[1] for part in segment.parts if _has_dictionary(part)), default=0)
    return dictionary + _COPIES * (frame.size + segment.size)


def _has_dictionary(part: Part) -> bool:
    return part.operation is Operation.GAP and len(part.params) == 3


def _shared(plan: Plan) -> int:
    return _NUMBER * plan.across * plan.rank + (8 * plan.rows * plan.rank if plan.is_peak or plan.kept else 0)


def _block(plan: Plan) -> int:
    return _ELEMENT * min(plans.CHUNK, plan.count)
