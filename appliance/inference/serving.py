"""Models that answer to others: loaded from the library, kept as its names move, called with named tensors.

    get      the model that a name, or a name and a version, stands for now
    follow   load what is wanted and not here, swap what a name no longer points to, let go of what is gone
    answer   prepare, compute, decode

A model that is swapped or let go of finishes the calls that are under way before it is closed. A new version that
cannot be loaded leaves the old one in its place, and says so.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from appliance import plugins
from appliance.errors import InferenceError, MillwrightError, ModelError
from appliance.inference import models, tensors
from appliance.inference.decoders.port import Decoder, Plain
from appliance.inference.joining import Joining
from appliance.inference.library import Entry, Library
from appliance.inference.models import Bundle, Port
from appliance.inference.port import Array, Spec
from appliance.inference.preparation import Preparation
from appliance.inference.tally import Tally

DECODERS = "appliance.inference.decoders"


class Computed(Protocol):
    @property
    def outputs(self) -> dict[str, Array]: ...

    @property
    def device(self) -> str: ...


class Computer(Protocol):
    """A model on a device, such as `engine.Engine`. Safe from several threads."""

    @property
    def device(self) -> str: ...  # that computes now

    @property
    def fallback(self) -> str: ...  # why it is not the one that was wished for; empty where it is

    @property
    def alarm(self) -> str: ...  # the part of it that somebody must be called for

    @property
    def inputs(self) -> Sequence[Spec]: ...

    @property
    def outputs(self) -> Sequence[Spec]: ...

    def ask(self, inputs: Mapping[str, Array]) -> Computed: ...

    def ask_rows(self, batch: Array) -> tuple[Array, str]: ...  # of a model that maps rows to rows

    def close(self) -> None: ...


Open = Callable[[Bundle], Computer]


class Answer(NamedTuple):
    outputs: dict[str, Array]
    decoded: list[Plain] | None  # one a row; None where it was not asked for
    device: str


class Served:
    """A loaded model: what callers hand over (`inputs`), what comes back (`outputs`), and how. Of those who call
    at the same time, `join` rows are computed together; of no use where the computer has several at once."""

    def __init__(self, bundle: Bundle, computer: Computer, join: int = 1) -> None:
        card = bundle.card
        agree(bundle.folder, "inputs", card.inputs, computer.inputs)
        agree(bundle.folder, "outputs", card.outputs, computer.outputs)
        self.bundle, self.computer = bundle, computer
        self._preparation = Preparation(card.inputs)
        self.inputs = self._preparation.specs
        self.outputs = tuple(Spec(port.name, port.dtype, tuple(port.shape)) for port in card.outputs)
        self.decoder = decoder_of(bundle)
        # Only a card knows that the first axis counts rows that do not see each other, so that they may be split.
        batched = bool(card.window) or card.inputs[0].layout.startswith("N")
        self._rows = batched and tensors.row_of(computer.inputs, computer.outputs) is not None
        self._ask_rows = Joining(computer.ask_rows, join) if join > 1 else computer.ask_rows
        self.tally = Tally()
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.bundle.card.name

    @property
    def version(self) -> str:
        return self.bundle.card.version

    @property
    def labels(self) -> list[str]:
        """Names of classes, of a model whose decoder has them."""
        labels = self.bundle.card.decoder.get("labels", [])
        return labels if isinstance(labels, list) else []

    def answer(self, inputs: Mapping[str, Array], wanted: Collection[str] | None, decode: bool) -> Answer:
        """`wanted`: names of outputs, None for all. ModelError names the tensor that does not fit and what would,
        DeviceError where no device computes it."""
        with self.tally.call(_rows_of(inputs)):
            return self._answer(inputs, wanted, decode)

    def _answer(self, inputs: Mapping[str, Array], wanted: Collection[str] | None, decode: bool) -> Answer:
        self._check_wanted(wanted, decode)
        with np.errstate(all="ignore"):  # what is no number, or too large for one, is computed on and told as it is
            prepared = self._preparation.prepare(inputs)
            outputs, device = self._computed(prepared)
            decoded = self._decode(prepared, outputs) if decode else None
        kept = {name: array for name, array in outputs.items() if wanted is None or name in wanted}
        return Answer(kept, decoded, device)

    def take(self) -> bool:
        """Begin to use it: it stays open until it is given back. False where it is being closed."""
        with self._lock:
            self._users += not self._closing
            return not self._closing

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closing and not self._users
        if last:
            self.computer.close()

    def retire(self) -> None:
        """Close it, at once or when its last user gives it back."""
        with self._lock:
            self._closing = True
            idle = not self._users
        if idle:
            self.computer.close()

    def _computed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], str]:
        if self._rows:
            answer, device = self._ask_rows(inputs[self.inputs[0].name])
            return {self.outputs[0].name: answer}, device
        computed = self.computer.ask(inputs)
        return {spec.name: computed.outputs[spec.name] for spec in self.outputs}, computed.device

    def _check_wanted(self, wanted: Collection[str] | None, decode: bool) -> None:
        known = [spec.name for spec in self.outputs]
        for name in wanted or ():
            if name not in known:
                raise ModelError(f"the model has no output '{name}'", f"Its outputs are: {', '.join(known)}.")
        if decode and self.decoder is None:
            raise ModelError(
                f"nothing decodes the answers of a model for '{self.bundle.card.task}'",
                f"A card's task may be: {', '.join(plugins.names(DECODERS))}.",
            )

    def _decode(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Plain]:
        assert self.decoder is not None
        try:
            return self.decoder.decode(inputs, outputs)
        except (IndexError, ValueError) as error:
            shapes = ", ".join(
                tensors.text(Spec(name, str(array.dtype), array.shape)) + f" {name}" for name, array in outputs.items()
            )
            raise ModelError(
                f"the answer ({shapes}) is not what the card's decoder expects: {error}", "Correct [decoder] there."
            ) from None


def _rows_of(inputs: Mapping[str, Array]) -> int:
    """The length of the first axis, 1 where there is none."""
    return next((array.shape[0] for array in inputs.values() if array.ndim), 1)


class Repertoire:
    """`wanted`: names (`digits`, which follows the library) and versions (`digits@1.0.0`); empty: every name."""

    def __init__(
        self, library: Library, opened: Open, wanted: Sequence[str] = (), most: int = 8, join: int = 1
    ) -> None:
        self.library, self._open, self._join = library, opened, join
        self._most = most
        self._wanted = list(wanted)
        self._every = not wanted
        self._loaded: dict[str, Served] = {}  # by what was wanted
        self._dismissed: set[str] = set()  # let go of by a person; stays away until asked for again
        self.problems: dict[str, str] = {}  # of what is wanted and cannot be served as wanted
        self._refused: dict[str, Path] = {}  # folders that were tried in vain
        self._changing = threading.Lock()

    @property
    def loaded(self) -> list[Served]:
        return list(self._loaded.values())

    def get(self, name: str, version: str = "") -> Served:
        """ModelError where no such model is loaded."""
        if not version and (served := self._loaded.get(name)):
            return served
        found = [one for one in self.loaded if one.name == name and version in ("", one.version)]
        if not found:
            raise self._absent(name, version)
        return found[-1]

    @contextmanager
    def using(self, name: str, version: str = "") -> Iterator[Served]:
        """The model, kept open as long as the context lasts. ModelError where no such model is loaded."""
        while not (served := self.get(name, version)).take():
            pass  # it was swapped this very moment: the next look finds its successor, or none
        try:
            yield served
        finally:
            served.give_back()

    def follow(self) -> None:
        """Bring what is loaded in step with what is wanted; what cannot be is told in `problems`. Slow where something
        must be loaded. StoreError where the library cannot be read."""
        with self._changing:
            wanted = self._all_wanted()
            for reference in set(self._loaded) - set(wanted):
                self._drop(reference)
            for reference in [name for name in self.problems if name not in wanted]:
                del self.problems[reference]
            for reference in wanted:
                self._bring(reference)

    def load(self, reference: str) -> Served:
        """Load what is not, for as long as this process lives. InferenceError says why it cannot be."""
        entry = self.library.find(reference)
        name = reference if reference in (entry.card.name, entry.title) else entry.title
        with self._changing:
            self._dismissed.discard(name)
            if name not in self._wanted:
                self._wanted.append(name)
            self._refused.pop(name, None)
            self._bring(name)
            if name in self.problems:
                raise InferenceError(self.problems[name])
        return self._loaded[name]

    def unload(self, name: str, version: str = "") -> None:
        """Let go of a model, or of one version of it. ModelError where none is loaded."""
        with self._changing:
            gone = [
                reference
                for reference, served in self._loaded.items()
                if served.name == name and version in ("", served.version)
            ]
            if not gone:
                raise self._absent(name, version)
            for reference in gone:
                self._dismissed.add(reference)
                self._drop(reference)

    def close(self) -> None:
        with self._changing:
            for reference in list(self._loaded):
                self._drop(reference)

    def _all_wanted(self) -> list[str]:
        every = self.library.names() if self._every else []
        return [name for name in dict.fromkeys((*self._wanted, *every)) if name not in self._dismissed]

    def _bring(self, reference: str) -> None:
        here = self._loaded.get(reference)
        try:
            folder = self._folder(reference)
            if here is not None and here.bundle.folder == folder:
                self.problems.pop(reference, None)
                return
            if self._refused.get(reference) == folder:
                return
            self._make_room(reference)
            self._refused[reference] = folder
            self._loaded[reference] = self._opened(folder)
            del self._refused[reference]
            self.problems.pop(reference, None)
        except MillwrightError as error:
            self.problems[reference] = str(error)
            return
        if here is not None:
            here.retire()

    def _make_room(self, reference: str) -> None:
        if reference not in self._loaded and len(self._loaded) >= self._most:
            raise ModelError(
                f"{reference} is not loaded: {self._most} models are loaded already",
                "Name the ones to serve in `infer.models`, or raise `infer.max_loaded`.",
            )

    def _opened(self, folder: Path) -> Served:
        bundle = models.load(folder)
        computer = self._open(bundle)
        try:
            return Served(bundle, computer, self._join)
        except ModelError:
            computer.close()
            raise

    def _folder(self, reference: str) -> Path:
        current = self.library.current(reference) if "@" not in reference else None
        return current or self.library.find(reference).folder

    def _drop(self, reference: str) -> None:
        self._refused.pop(reference, None)
        self.problems.pop(reference, None)
        served = self._loaded.pop(reference, None)
        if served is not None:
            served.retire()

    def _absent(self, name: str, version: str) -> ModelError:
        title = f"{name}@{version}" if version else name
        for reference in (title, name):
            if reference in self.problems:
                message, _, remedy = self.problems[reference].partition("\n  -> ")
                return ModelError(f"the model '{title}' is not loaded: {message}", remedy)
        known: dict[str, Entry] = {entry.title: entry for entry in self.library.entries()}
        if any(title in (entry.card.name, entry.title) for entry in known.values()):
            return ModelError(f"the model '{title}' is not loaded", f"Load it: millwright models load {title}")
        served = ", ".join(sorted(f"{one.name}@{one.version}" for one in self.loaded)) or "none"
        return ModelError(f"there is no model '{title}'", f"Loaded are: {served}.")


def decoder_of(bundle: Bundle) -> Decoder | None:
    """What makes plain results of the model's answers, None for a task without. ModelError names the wrong setting."""
    card = bundle.card
    if card.task not in plugins.names(DECODERS):
        if card.decoder:
            known = ", ".join(plugins.names(DECODERS))
            raise ModelError(
                f"{bundle.folder / models.CARD}: [decoder] but the task is '{card.task}'", f"Decoded are: {known}."
            )
        return None
    plugin = plugins.load(DECODERS, card.task)
    settings = models.settings_of(bundle.folder, plugin.Settings)
    inputs, outputs = ([Spec(port.name, port.dtype, tuple(port.shape)) for port in ports]
                       for ports in (card.inputs, card.outputs))  # fmt: skip
    try:
        decoder: Decoder = plugin.create(settings, inputs, outputs)
    except ModelError as error:
        raise ModelError(f"{bundle.folder / models.CARD}: {error.message}", error.remedy) from None
    return decoder


def agree(folder: Path, what: str, ports: Sequence[Port], specs: Sequence[Spec]) -> None:
    """ModelError where the card tells of other tensors than the model has."""
    told = {port.name: Spec(port.name, port.dtype, tuple(port.shape)) for port in ports}
    real = {spec.name: spec for spec in specs}
    shown = ", ".join(f"{spec.name} {tensors.text(spec)}" for spec in specs)
    for name in (*(name for name in told if name not in real), *(name for name in real if name not in told)):
        problem = "the model has none of that name" if name in told else "the card does not tell of it"
        raise ModelError(f"{folder / models.CARD}: {what} '{name}': {problem}", f"The model has: {shown}.")
    for name, spec in real.items():
        if not _narrower(told[name], spec):
            raise ModelError(
                f"{folder / models.CARD}: {what} '{name}': is {tensors.text(spec)}, not {tensors.text(told[name])}",
                "Say in the card what the model has.",
            )


def _narrower(told: Spec, real: Spec) -> bool:
    """The card promises no more than the model takes: any length may be told as a certain one."""
    if told.dtype != real.dtype or len(told.shape) != len(real.shape):
        return False
    return all(have in (-1, say) for say, have in zip(told.shape, real.shape, strict=True))
