"""Segments become the new file again, in bounded memory.

A tensor that spans segments is remembered between them: its plan, its next block, and what its blocks share.
"""

from dataclasses import dataclass
from typing import Any

import cbor2
import numpy as np
import zstandard

from ota.delta import payload, plans, predictors, rans
from ota.delta.errors import MismatchError, PatchError
from ota.delta.kernel import available
from ota.delta.plans import Blocks, Plan
from ota.delta.predictors import Columns, Inputs
from ota.delta.segments import MAX_PARTS, MAX_SEGMENT, Operation, Part, Segment
from ota.delta.streams import Maps, Reading
from ota.delta.tensors import MAX_BYTES, Source

MAX_DICTIONARY = 8 << 20  # bytes of the old file that a GAP part may look at


@dataclass
class _Tensor:
    """The tensor that is under way, `offset` that of its first byte."""

    offset: int
    plan: Plan
    shared: Columns
    block: int = 0


class _Overlay:
    """The new file as written before, and what this segment gave so far."""

    def __init__(self, below: Source) -> None:
        self._below = below
        self._given: list[tuple[int, bytes]] = []

    def add(self, offset: int, data: bytes) -> None:
        self._given.append((offset, data))

    def read(self, offset: int, size: int) -> bytes:
        for start, data in reversed(self._given):
            if start < offset + size and offset < start + len(data):
                return self._around(offset, size, start, data)
        return self._below.read(offset, size)

    def _around(self, offset: int, size: int, start: int, data: bytes) -> bytes:
        """A range that meets one that was given: what is before it, of it and behind it."""
        first, last = max(offset, start), min(offset + size, start + len(data))
        before = self.read(offset, first - offset) if first > offset else b""
        after = self.read(last, offset + size - last) if last < offset + size else b""
        return before + data[first - start : last - start] + after


class Decoder:
    """Gives the new bytes back, segment by segment; DeltaError for whatever is not as it should be.

    `new` reads what was decoded and written before. After an error the decoder is of no more use. With a kernel it is
    fast; without one, or as the `reference`, numpy gives the same.
    """

    def __init__(self, old: Source, new: Source, tables: bytes, reference: bool = False) -> None:
        self._old, self._new = old, new
        self._kernel = None if reference else available()
        lanes, book = payload.read_tables(tables)
        self._maps = Maps(book)
        self._states = rans.start(lanes)
        self._tensor: _Tensor | None = None
        self._kept: Columns | None = None  # of the last scales that told a low rank

    def decode(self, segment: Segment) -> bytes:
        """The bytes of all its parts in order, to be written to their places before the next segment is decoded."""
        if segment.size > MAX_SEGMENT or not 0 < len(segment.parts) <= MAX_PARTS:
            raise PatchError(f"a segment of {segment.size} bytes in {len(segment.parts)} parts")
        content = payload.read(segment.payload, len(self._states))
        if content.states is not None:
            self._check_even()
            self._states = content.states
        run = _Run(self, content)
        with np.errstate(all="ignore"):
            found = [run.part(part) for part in segment.parts]
        run.finish()
        return b"".join(found)

    def _check_even(self) -> None:
        if (self._states != rans.LOW).any():
            raise PatchError("a stream does not come out even")

    def finish(self) -> None:
        """To be called after the last segment: PatchError unless every stream and tensor came to its end."""
        self._check_even()
        if self._tensor is not None:
            raise PatchError("a patch ends within a tensor")

    def state(self) -> bytes:
        """What a decoder needs, besides the tables, to go on with the next segment."""
        kept = self._kept
        state: list[Any] = [self._states.astype("<u4").tobytes(), _packed(kept) if kept else []]
        tensor = self._tensor
        if tensor is not None:
            state += [tensor.offset, list(tensor.plan.params()), tensor.block, *_packed(tensor.shared)]
        return cbor2.dumps(state)

    def resume(self, state: bytes) -> None:
        """MismatchError for a state that no `state()` of this patch gave."""
        try:
            words, kept, *rest = cbor2.loads(state)
            states = np.frombuffer(words, "<u4").astype(np.uint32)
            tensor, before = None, _unpacked(*kept) if kept else None
            if rest:
                offset, params, block, *shared = rest
                plan = plans.parse(tuple(params))
                tensor = _Tensor(int(offset), plan, _unpacked(*shared), int(block))
        except (ValueError, TypeError, OverflowError, cbor2.CBORDecodeError, zstandard.ZstdError) as error:
            raise MismatchError("a decoder's state that cannot be read", "start the patch again") from error
        if len(states) != len(self._states) or (states < rans.LOW).any():
            raise MismatchError("a decoder's state of another patch", "start the patch again")
        self._states, self._tensor, self._kept = states, tensor, before


def _packed(shared: Columns) -> list[Any]:
    """For each array nothing, or its shape and its bytes."""
    arrays = (shared.classes, shared.right, shared.left_classes, shared.left)
    return [
        None if array is None else [list(array.shape), zstandard.compress(array.astype(form).tobytes(), 1)]
        for array, form in zip(arrays, _FORMS, strict=True)
    ]


_FORMS = ("<i4", "<i8", "u1", "<i4")


def _unpacked(*parts: Any) -> Columns:
    most = 8 * plans.MAX_COLUMNS
    arrays = []
    for part, form in zip(parts, _FORMS, strict=True):
        data = b"" if part is None else zstandard.ZstdDecompressor().decompress(part[1], max_output_size=most)
        arrays.append(None if part is None else np.frombuffer(data, form).reshape(part[0]))
    classes, right, left_classes, left = arrays
    return Columns(classes, None if right is None else right.astype(np.float64), left_classes, left)


class _Run:
    """One segment."""

    def __init__(self, decoder: Decoder, content: payload.Payload) -> None:
        self._decoder = decoder
        self._coder = Reading(decoder._maps, decoder._states, content.words, content.raw, decoder._kernel)
        self._blobs, self._place = content.blobs, 0
        self._overlay = _Overlay(decoder._new)

    def part(self, part: Part) -> bytes:
        if not (0 <= part.offset <= MAX_BYTES and 0 < part.size <= MAX_SEGMENT):
            raise PatchError(f"a part of {part.size} bytes at {part.offset}")
        if part.operation is Operation.DELTA:
            data = self._delta(part)
        elif part.operation is Operation.COPY:
            (moved,) = _exactly(part, 1)
            data = self._decoder._old.read(part.offset + moved, part.size)
        else:
            data = self._packed(part)
        if len(data) != part.size:
            raise PatchError(f"a part gives {len(data)} bytes, not {part.size}")
        self._overlay.add(part.offset, data)
        return data

    def _packed(self, part: Part) -> bytes:
        """RAW: (size of the blob,) or nothing where it is stored. GAP: (old offset less ours, old size, blob's)."""
        if part.operation is Operation.RAW:
            if not part.params:
                return self._blob(part.size)
            return _unzip(self._blob(_exactly(part, 1)[0]), part.size, None)
        moved, size, length = _exactly(part, 3)
        if not 0 < size <= MAX_DICTIONARY:
            raise PatchError(f"a dictionary of {size} bytes; {MAX_DICTIONARY} are allowed")
        old = self._decoder._old.read(part.offset + moved, size)
        return _unzip(self._blob(length), part.size, old)

    def _blob(self, size: int) -> bytes:
        if not 0 <= size <= len(self._blobs) - self._place:
            raise PatchError("a payload ends within a part")
        self._place += size
        return self._blobs[self._place - size : self._place]

    def _delta(self, part: Part) -> bytes:
        tensor = self._begin(part) if part.params else self._decoder._tensor
        if tensor is None:
            raise PatchError("a part goes on with a tensor that never began")
        walk = Blocks(tensor.plan)
        if tensor.offset + walk.start(tensor.block) != part.offset:
            raise PatchError("a part is not where its tensor goes on")
        inputs = Inputs(self._decoder._old, self._overlay, tensor.offset)
        found, size = [], 0
        while size < part.size and tensor.block < len(walk):
            found.append(predictors.block(tensor.plan, walk[tensor.block], tensor.shared, inputs, self._coder, None))
            size += len(found[-1])
            tensor.block += 1
        self._decoder._tensor = tensor if tensor.block < len(walk) else None
        if tensor.block == len(walk):
            self._decoder._kept = tensor.shared if tensor.plan.is_peak else None
        return b"".join(found)

    def _begin(self, part: Part) -> _Tensor:
        if self._decoder._tensor is not None:
            raise PatchError("a tensor begins within another")
        plan = plans.parse(part.params)
        return _Tensor(part.offset, plan, predictors.columns(plan, self._coder, None, self._decoder._kept))

    def finish(self) -> None:
        self._coder.finish()
        if self._place != len(self._blobs):
            raise PatchError("a payload holds more than its parts")


def _exactly(part: Part, count: int) -> tuple[int, ...]:
    if len(part.params) != count:
        raise PatchError(f"an operation {part.operation} with {len(part.params)} parameters")
    return part.params


def _unzip(blob: bytes, size: int, dictionary: bytes | None) -> bytes:
    known = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    try:
        frame = zstandard.get_frame_parameters(blob)
        if frame.content_size != size:
            raise PatchError("a part packs another size than its own")
        return zstandard.ZstdDecompressor(dict_data=known, max_window_size=1 << 24).decompress(blob)
    except zstandard.ZstdError as error:
        raise PatchError("a part that zstd cannot unpack") from error
