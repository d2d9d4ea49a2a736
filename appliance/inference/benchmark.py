"""How fast a model is on a device: what one call takes, and how many rows a second come out of many calls at once.

Latency is that of one request at a time, from the call to the answer; throughput that of as many threads as the device
has streams, on batches of a given size, as OpenVINO's benchmark_app measures them.
"""

import statistics
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from appliance.errors import DeviceError, ModelError
from appliance.inference import probe
from appliance.inference.port import Array, Model

FEWEST = 10  # calls of a measurement, whatever its time

Inputs = Mapping[str, Array]


class Latency(NamedTuple):
    """Seconds of one call."""

    median: float
    p90: float
    p99: float
    longest: float
    calls: int


def inputs_for(model: Model, batch: int) -> dict[str, Array]:
    """Waves in every input, `batch` rows where the number of rows is free. ModelError where the model takes none."""
    for length in probe.LENGTHS:
        one = probe.inputs_for(model.inputs, length)
        inputs = {
            spec.name: np.repeat(one[spec.name], batch, axis=0) if spec.shape[:1] == (-1,) else one[spec.name]
            for spec in model.inputs
        }
        try:
            model.run(inputs)
            return inputs
        except (DeviceError, ModelError) as error:
            refused = error
    raise ModelError(f"the model takes no batch of {batch}: {refused.message}", "Choose another --batch.")


def latency(model: Model, inputs: Inputs, seconds: float) -> Latency:
    """The first call, which may still compile, does not count."""
    model.run(inputs)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < FEWEST or time.perf_counter() < end:
        started = time.perf_counter()
        model.run(inputs)
        taken.append(time.perf_counter() - started)
    ranked = statistics.quantiles(taken, n=100, method="inclusive")
    return Latency(statistics.median(taken), ranked[89], ranked[98], max(taken), len(taken))


def throughput(model: Model, inputs: Inputs, rows: int, threads: int, seconds: float) -> float:
    """Rows a second. DeviceError where a call fails."""
    model.run(inputs)
    calls, errors = [0] * threads, []
    began = time.perf_counter()
    end = began + seconds

    def work(place: int) -> None:
        try:
            while time.perf_counter() < end or not calls[place]:
                model.run(inputs)
                calls[place] += 1
        except (DeviceError, ModelError) as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return rows * sum(calls) / (time.perf_counter() - began)
