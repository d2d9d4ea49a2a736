"""Waveforms as channels: what of a block counts is how much it shakes, over all and in each octave.

A point of a block becomes half logarithms of energy, one channel each, which are then judged like any other channel:

    <point>.spread      of the whole block, less its mean
    <point>.octave1     of the upper half of the frequencies that its rate can show; octave2 of the half below, ...
"""

import itertools
from collections.abc import Mapping

import numpy as np

from appliance.errors import EventError
from appliance.events.schema import Block, Reading
from appliance.inference.detector.arena import Floats

OCTAVES = 5  # the last one holds all frequencies below the others
FEWEST = 1 << OCTAVES  # samples
SILENCE = 1e-30  # energy whose logarithm can still be taken
SECOND = 1_000_000_000


def features(block: Block) -> Reading:
    """At the block's end. EventError where a point has too few samples (short-block)."""
    values: dict[str, float] = {}
    for point, samples in block.values.items():
        if len(samples) < FEWEST:
            raise EventError("short-block", f"{point}: {len(samples)} samples ({FEWEST} are needed)")
        values.update(_named(point, _energies(np.asarray(samples, np.float64))))
    length = max((len(samples) for samples in block.values.values()), default=0)
    return Reading(block.at + round(length / block.rate * SECOND), values)


def _energies(samples: Floats) -> Floats:
    """[1 + OCTAVES] half logarithms."""
    centred = samples - samples.mean()
    power = np.square(np.abs(np.fft.rfft(centred))) / len(centred) ** 2
    count = len(power)
    edges = [0, *(count >> octave for octave in range(OCTAVES - 1, -1, -1))]
    parts = [power[low:high].sum() for low, high in itertools.pairwise(edges)]
    energies: Floats = 0.5 * np.log(np.maximum([np.square(centred).mean(), *parts[::-1]], SILENCE))
    return energies


def _named(point: str, energies: Floats) -> Mapping[str, float]:
    names = ["spread", *(f"octave{octave}" for octave in range(1, OCTAVES + 1))]
    return {f"{point}.{name}": value for name, value in zip(names, energies.tolist(), strict=True)}
