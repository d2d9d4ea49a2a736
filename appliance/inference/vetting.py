"""Looks at a model's file where a hostile one does no harm: in a process of its own, with bounded memory and time."""

from pathlib import Path
from typing import NamedTuple

from appliance.errors import ModelError
from appliance.inference.blobs import Blobs
from appliance.inference.isolated.workers import LostError, Workers
from appliance.inference.models import Bundle, shipped
from appliance.inference.policy import CPU
from appliance.inference.port import Backend, Spec

COMPILE_S = 120.0
MEMORY, MEMORY_SHARE = 4 << 30, 8  # bytes of address space: for the runtime, and as a multiple of the files
REMEMBERED = 256 << 20  # bytes of the folder that remembers; it is shared with what was compiled


class Tensors(NamedTuple):
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]


def look(model: Path, backend: Backend) -> Tensors:
    """What the model takes and gives. ModelError where the file is refused or ends the process that compiles it."""
    if model.suffix not in backend.suffixes:
        raise ModelError(
            f"{model}: the backend '{backend.name}' does not load {model.suffix} files",
            f"It loads {', '.join(backend.suffixes)}; the card may name another backend.",
        )
    size = sum(path.stat().st_size for path in {model, model.with_suffix(".bin")} if path.exists())
    workers = Workers()
    try:
        compiled = workers.compile(backend, model, CPU, compile_s=COMPILE_S, memory=MEMORY + MEMORY_SHARE * size)
        return Tensors(compiled.inputs, compiled.outputs)
    except LostError as error:
        raise ModelError(f"{model}: cannot be compiled: {error.message}", "Do not use this model.") from None
    finally:
        workers.close()


def vet(bundle: Bundle, backend: Backend, blobs: Path | None = None) -> None:
    """`look`, of a bundle that we did not ship, once: what passed is remembered in the folder `blobs`."""
    if bundle.folder == shipped():
        return
    known = Blobs(blobs, REMEMBERED, f"vetted {backend.name} {backend.version}") if blobs else None
    if known is not None and known.get(bundle.digest):
        return
    look(bundle.model, backend)
    if known is not None:
        known.put(bundle.digest, b"\1")
