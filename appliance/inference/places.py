"""Makes a model ready on a device: compile, probe, measure."""

import logging
import time

import msgspec

from appliance.errors import DeviceError, ModelError
from appliance.inference import probe
from appliance.inference.blobs import Blobs
from appliance.inference.isolated.workers import Workers
from appliance.inference.models import Bundle
from appliance.inference.policy import CPU, Fact, Figures, Quarantine, Terms, Wish
from appliance.inference.port import Backend, Model, Spec

log = logging.getLogger(__name__)


class Place:
    """A device that may compute the model."""

    def __init__(self, wish: Wish, rank: int, identity: str, terms: Terms) -> None:
        self.device, self.rank, self.identity = wish.device, rank, identity
        self.model: Model | None = None  # ready
        self.figures: Figures | None = None
        self.trouble = ""  # why it does not compute
        self.calls_out = wish.named  # its trouble is worth an alarm
        self.quarantine = Quarantine(terms.first_pause_s, terms.longest_pause_s)
        self._terms = terms

    @property
    def isolated(self) -> bool:
        which = self._terms.isolate
        return which == "all" or (which == "accelerators" and self.device != CPU)

    @property
    def merit(self) -> float:
        """The smaller the better; what is not known is worst."""
        if not self._terms.measures:
            return self.rank
        return self.figures.merit(self._terms.policy) if self.figures else float("inf")

    @property
    def promising(self) -> bool:
        """Nobody knows yet how good it is."""
        return self._terms.measures and self.figures is None

    def work(self, model: Model, now: float) -> None:
        self.model, self.trouble = model, ""
        self.quarantine.work(now)

    def fail(self, why: str, now: float) -> None:
        self.model, self.trouble = None, why
        self.quarantine.fail(now)


class Readier:
    """Makes one bundle's model ready, device by device; the CPU must be the first, the others are compared with it."""

    def __init__(self, bundle: Bundle, backend: Backend, terms: Terms, workers: Workers) -> None:
        if bundle.model.suffix not in backend.suffixes:
            raise ModelError(
                f"{bundle.model}: the backend '{backend.name}' does not load {bundle.model.suffix} files",
                f"It loads {', '.join(backend.suffixes)}.",
            )
        self.inputs: tuple[Spec, ...] = ()
        self.outputs: tuple[Spec, ...] = ()
        self._bundle, self._backend, self._terms, self._workers = bundle, backend, terms, workers
        self._window = bundle.card.window
        self._expected: probe.Answers | None = None

    def place(self, wish: Wish, rank: int, fact: Fact | None) -> Place:
        """With what an earlier start found out of it."""
        known = f"{fact.name}\n{fact.driver}\n{fact.firmware}" if fact else ""
        identity = f"{self._bundle.digest}\n{wish.device}\n{self._backend.name} {self._backend.version}\n{known}"
        place = Place(wish, rank, identity, self._terms)
        place.figures = self._remembered(place)
        if wish.reason:
            place.calls_out = place.calls_out or self._worked_once(place)
            place.fail(f"{wish.device}: {wish.reason}", time.monotonic())
        return place

    def ready(self, place: Place, measured: bool) -> Model:
        """DeviceError where the device cannot, ModelError where the file is refused."""
        model = self._probed(place)
        try:
            if measured:
                self.measure(place, model)
        except DeviceError:
            model.close()
            raise
        self._prove(place)
        return model

    def measure(self, place: Place, model: Model) -> None:
        """Unless it is known."""
        if place.figures is None:
            place.figures = probe.measure(model, self._window)
            self._remember(place)

    def well(self, model: Model) -> bool:
        """It still answers the probe: what it refused was no fault of the device."""
        try:
            probe.answers(model, self._window)
            return True
        except (DeviceError, ModelError):
            return False

    def _probed(self, place: Place) -> Model:
        """Where the answers are wrong, what was compiled earlier is not trusted: it is compiled anew, once."""
        model = self._compiled(place)
        try:
            return self._agreeing(place, model)
        except DeviceError as error:
            blobs = self._blobs(place.identity)
            if blobs is None or not blobs.forget():
                raise
            log.warning("%s; it is compiled anew", error.message)
        return self._agreeing(place, self._compiled(place))

    def _compiled(self, place: Place) -> Model:
        terms, backend, path = self._terms, self._backend, self._bundle.model
        plan = msgspec.structs.replace(terms.plan(eager=place.isolated), identity=place.identity)
        if place.isolated:
            return self._workers.compile(backend, path, place.device, plan, terms.deadline_s)
        return backend.compile(path, place.device, plan)

    def _agreeing(self, place: Place, model: Model) -> Model:
        try:
            found = probe.answers(model, self._window)
            if place.device == CPU:
                self._expected, self.inputs, self.outputs = found, model.inputs, model.outputs
            elif self._expected is not None:
                probe.compare(place.device, found, self._expected)
        except (DeviceError, ModelError):
            model.close()
            raise
        if not self.inputs:
            self.inputs, self.outputs = model.inputs, model.outputs
        return model

    def _blobs(self, identity: str) -> Blobs | None:
        terms = self._terms
        return Blobs(terms.blobs, terms.blobs_bytes, identity) if terms.blobs else None

    def _remembered(self, place: Place) -> Figures | None:
        blobs = self._blobs(place.identity)
        held = blobs.get(f"figures {self._terms.policy}") if blobs else None
        try:
            return msgspec.msgpack.decode(held, type=Figures) if held else None
        except msgspec.MsgspecError:
            return None

    def _remember(self, place: Place) -> None:
        blobs = self._blobs(place.identity)
        if blobs is not None and place.figures is not None:
            blobs.put(f"figures {self._terms.policy}", msgspec.msgpack.encode(place.figures))

    def _prove(self, place: Place) -> None:
        proof = self._blobs("worked once")
        if proof is not None and place.device != CPU and proof.get(place.device) is None:
            proof.put(place.device, b"\1")

    def _worked_once(self, place: Place) -> bool:
        proof = self._blobs("worked once")
        return proof is not None and proof.get(place.device) is not None
