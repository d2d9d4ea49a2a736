"""From a bundle and what is known of the devices to something that can be called: `start(...)(windows)`.

    the CPU compiles first and says what the right answers are
    every other device that may be used compiles in a process of its own, is asked a probe that must agree with the
        CPU's answers, and is measured where figures decide
    the best of them computes; when it fails, the next one computes the same batch, and it is tried again later

A slower device than the one that was wished for is never silent: `Engine.fallback` says which failed and why.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from appliance.errors import DeviceError, InferenceError, ModelError
from appliance.inference import policy
from appliance.inference.isolated.workers import Workers
from appliance.inference.models import Bundle
from appliance.inference.places import Place, Readier
from appliance.inference.policy import CPU, TERMS, Fact, Terms
from appliance.inference.port import Array, Backend, Model, Spec, Tensor
from appliance.inference.vetting import vet

log = logging.getLogger(__name__)

INLINE_S = 0.005  # longer calls belong in a thread; handing shorter ones over costs more CPU than they do
CALMER = 0.5  # of INLINE_S: below it calls are inline again
WEIGHT = 1 / 16  # of a call's duration in the typical one
JOIN_S = 2.0

Find = Callable[[], Sequence[Fact]]
_T = TypeVar("_T")


class Answer(NamedTuple):
    """Tensors by name, and what computed them."""

    outputs: dict[str, Array]
    device: str
    name: str
    version: str


def start(bundle: Bundle, backend: Backend, terms: Terms = TERMS, find: Find = tuple) -> "Engine":
    """The bundle's model on the best device. `find` tells what is known of the devices, anew each time; a device that
    is named and that nothing is known of is tried.

    ModelError where the bundle's files are refused; DeviceError where not even the CPU runs it.
    """
    if terms.isolate != "all":
        vet(bundle, backend, terms.blobs)
    return Engine(bundle, backend, terms, find)


def reconstructor(bundle: Bundle, backend: Backend, terms: Terms = TERMS, find: Find = tuple) -> "Engine":
    """`start`, of a model that reconstructs windows. ModelError where it does not."""
    if bundle.card.task != "reconstruction" or not bundle.card.window:
        raise ModelError(
            f"{bundle.folder}: is a model for '{bundle.card.task}', not one that reconstructs windows",
            "Name another bundle in `detect.model`.",
        )
    return start(bundle, backend, terms, find)


class Engine:
    """The port's Model on whichever device is best. `name` and `version` are the model's, `device` the one that
    computed last; those who call from several threads use `ask`, whose answers carry their own.
    """

    def __init__(self, bundle: Bundle, backend: Backend, terms: Terms, find: Find) -> None:
        self.window, self.name, self.version = bundle.card.window, bundle.card.name, bundle.card.version
        self.device, self.per_shape = "", False
        self.fallback = ""  # why it is not the device that was wished for
        self.alarm = ""  # the part of it that somebody must be called for
        self.slow = False  # calls belong in a thread
        self._typical_s = 0.0
        self._terms, self._find = terms, find
        self._workers = Workers()
        self._readier = Readier(bundle, backend, terms, self._workers)
        self._changed = threading.Condition()
        self._closed = False
        self._keeper: threading.Thread | None = None
        facts = {fact.device: fact for fact in find()}
        wishes = policy.wishes(terms.devices, facts.values())
        self._places = [self._readier.place(wish, rank, facts.get(wish.device)) for rank, wish in enumerate(wishes)]
        self._place: Place | None = None
        self._begin()

    @property
    def inputs(self) -> tuple[Spec, ...]:
        return self._readier.inputs

    @property
    def outputs(self) -> tuple[Spec, ...]:
        return self._readier.outputs

    @property
    def preparing(self) -> list[str]:
        """Devices that may take over once they are ready."""
        return [place.device for place in self._wanted() if not place.trouble]

    def __call__(self, windows: Tensor) -> Tensor:
        """Reconstructs [n, window] float32, any n."""
        return self.infer(windows)

    def infer(self, batch: Array) -> Array:
        answer, self.device = self._computed(lambda model: model.infer(batch), False)
        return answer

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.ask(inputs).outputs

    def ask(self, inputs: Mapping[str, Array]) -> Answer:
        outputs, self.device = self._computed(lambda model: model.run(inputs), True)
        return Answer(outputs, self.device, self.name, self.version)

    def ask_rows(self, batch: Array) -> tuple[Array, str]:
        """Rows and the device that computed them."""
        return self._computed(lambda model: model.infer(batch), False)

    def close(self) -> None:
        """End the processes that compute. What is under way fails."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._workers.close()
        if self._keeper is not None:
            self._keeper.join(JOIN_S)
        for place in self._places:
            model, place.model = place.model, None
            if model is not None:
                model.close()
        self._place = None

    def _computed(self, call: Callable[[Model], _T], any_inputs: bool) -> tuple[_T, str]:
        """`any_inputs`: the inputs may be what the model cannot compute."""
        revived = False
        while True:
            place, model = self._current()
            started = time.perf_counter()
            try:
                answer = call(model)
            except DeviceError as error:
                if any_inputs and self._readier.well(model):
                    raise ModelError(
                        f"{self.name} cannot compute these inputs: {error.message}", "Feed it what its card says."
                    ) from None
                self._step_down(place, model, error)
                if self._place is None and not revived:
                    revived = True
                    self._revive()
                continue
            self._took(time.perf_counter() - started, place)
            return answer, model.device

    def _revive(self) -> None:
        """The last resort has failed, in a process of its own: another process may do the work."""
        cpu = self._cpu()
        if cpu.isolated and not self._closed:
            log.warning("%s %s: there is no other device; the CPU is started again", self.name, self.version)
            self._ready(cpu, measured=False)

    def _current(self) -> tuple[Place, Model]:
        place = self._place
        if place is not None and (model := place.model) is not None:
            return place, model
        with self._changed:  # one may be just taking over from another
            if self._place is None or self._place.model is None:
                raise self._nobody()
            return self._place, self._place.model

    def _took(self, seconds: float, place: Place) -> None:
        self._typical_s = typical = self._typical_s + (seconds - self._typical_s) * WEIGHT
        self.slow = place.isolated or typical > (INLINE_S * CALMER if self.slow else INLINE_S)

    def _nobody(self) -> DeviceError:
        return DeviceError(
            f"no device runs the model {self.name} {self.version} ({self.fallback})", "See `millwright doctor`."
        )

    # ---- devices come and go ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The CPU now; the others while we wait for them, or later."""
        cpu = self._cpu()
        alone = all(place is cpu or place.trouble for place in self._places)
        try:
            self._ready(cpu, measured=self._terms.measures and not alone)
            self._keep_going()
            with self._changed:
                self._changed.wait_for(lambda: self._due() is None, self._terms.patience_s)
            place, model = self._current()
        except InferenceError:
            self.close()
            raise
        self.slow, self.device = place.isolated, model.device

    def _ready(self, place: Place, measured: bool) -> None:
        """ModelError passes: the file is to blame."""
        cpu = self._cpu()
        try:
            if measured and cpu.model is not None:
                self._readier.measure(cpu, cpu.model)
            model = self._readier.ready(place, measured)
        except DeviceError as error:
            self._fails(place, error.message)
            return
        with self._changed:
            if not self._closed:
                place.work(model, time.monotonic())
                self._choose()
                return
        model.close()

    def _fails(self, place: Place, why: str) -> None:
        with self._changed:
            place.calls_out = True
            place.fail(why, time.monotonic())
            self._choose()
        log.warning("%s; tried again in %.0f s", why, place.quarantine.until - time.monotonic())

    def _choose(self) -> None:
        """Whichever is best of those that are ready computes from the next call on. Part of every change."""
        with self._changed:
            ready = [place for place in self._places if place.model is not None]
            best = min(ready, key=lambda place: place.merit, default=None)
            if best is not None and best is not self._place:
                log.info("%s %s computes on %s", self.name, self.version, best.device)
            self._place = best
            spare = [place for place in ready if place not in (best, self._cpu())]
            troubled = [place for place in self._places if place.trouble and self._better(place)]
            self.fallback = "; ".join(place.trouble for place in troubled)
            self.alarm = "; ".join(place.trouble for place in troubled if place.calls_out)
            self._changed.notify_all()
        for place in spare:
            self._rest(place)

    def _rest(self, place: Place) -> None:
        """Its figures are known and another one is better: its memory is worth more."""
        model, place.model = place.model, None
        if model is not None:
            model.close()

    def _cpu(self) -> Place:
        return next(place for place in self._places if place.device == CPU)

    def _better(self, place: Place) -> bool:
        """Than the one that computes now."""
        return self._place is None or place.promising or place.merit < self._place.merit

    def _wanted(self) -> list[Place]:
        """Those that would be better and may be tried, now or later, soonest first."""
        wanted = [place for place in self._places if place.model is None and self._better(place)]
        return sorted(wanted, key=lambda place: (place.quarantine.until, place.rank))

    def _step_down(self, place: Place, model: Model, error: DeviceError) -> None:
        with self._changed:
            if place.model is not model:
                return  # another thread was here first, or it is at rest
            self._fails(place, error.message)
        model.close()
        self._keep_going()

    def _keep_going(self) -> None:
        """A thread tends the devices from the first time that one is wanted which does not compute."""
        with self._changed:
            if self._keeper is None and not self._closed and self._wanted():
                self._keeper = threading.Thread(target=self._keep, name="inference devices", daemon=True)
                self._keeper.start()

    def _keep(self) -> None:
        while True:
            with self._changed:
                place = self._due()
                while place is None:
                    if self._closed:
                        return
                    self._changed.wait(self._pause_s())
                    place = self._due()
            self._try(place)

    def _due(self) -> Place | None:
        wanted = self._wanted()
        return wanted[0] if wanted and not self._closed and wanted[0].quarantine.until <= time.monotonic() else None

    def _pause_s(self) -> float | None:
        wanted = self._wanted()
        return max(0.0, wanted[0].quarantine.until - time.monotonic()) if wanted else None

    def _try(self, place: Place) -> None:
        try:
            reason = self._reason(place.device) if place.trouble else ""
            if reason:
                with self._changed:
                    place.fail(f"{place.device}: {reason}", time.monotonic())
                    self._choose()
            else:
                self._ready(place, self._terms.measures)
        except ModelError as error:
            self._fails(place, f"{place.device}: {error.message}")
        except OSError as error:
            self._fails(place, f"{place.device}: {error}")

    def _reason(self, device: str) -> str:
        """What is against it now."""
        return next((fact.reason for fact in self._find() if fact.device == device), "")
