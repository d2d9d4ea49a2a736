"""What a patch does and where its bytes go, in lines for people. Nothing of it is applied."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ota.delta import container
from ota.delta.container import Change, Content, Frame, Way
from ota.delta.files import File
from ota.delta.tensors import Source


def lines(patch: Path) -> Iterator[str]:
    with File(patch) as source:
        manifest = container.read(source, source.size)
        what = f"a folder of {len(manifest.changes)} files" if manifest.folder else "one file"
        yield f"{patch}: {source.size} bytes give {what}, {manifest.size} bytes"
        yield f"  header, manifest and index: {manifest.begin} bytes, {len(manifest.index) // container.ENTRY} frames"
        for change, frames in manifest.frames():
            yield from _file(change, frames, source)


def _file(change: Change, frames: tuple[Frame, ...], source: Source) -> Iterator[str]:
    size = sum(frame.size for frame in frames)
    yield f"{change.path}: {change.way}, {size} bytes in {len(frames)} frames"
    if change.old is not None:
        yield f"  old {_content(change.old)}  {change.source}"
    yield f"  new {_content(change.new)}"
    if change.way is Way.TENSORS:
        yield from _operations(change, frames, source)


def _content(content: Content) -> str:
    return f"{content.size:>12} bytes  sha256 {content.sha256.hex()}"


def _operations(change: Change, frames: tuple[Frame, ...], source: Source) -> Iterator[str]:
    """Bytes sent are told by frame, under the operations that share it."""
    given: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    end = 0
    for frame in frames[1:]:
        segment = container.unframed(source.read(frame.offset, frame.size), end, change.new.size)
        for part in segment.parts:
            given[part.operation] += part.size
            parts[part.operation] += 1
            end = part.offset + part.size
        sent["+".join(sorted({part.operation for part in segment.parts}))] += frame.size
    yield f"  tables {frames[0].size if frames else 0} bytes"
    for operation, size in given.most_common():
        yield f"  {operation:<6} gives {size:>12} bytes in {parts[operation]} parts"
    for operations, size in sent.most_common():
        yield f"  sent   {size:>12} bytes by {operations}"
