"""What a settled asset still learns: how far it goes while it is well.

A learning period is short. What comes close to the threshold later, and is no alarm, widens the branch's unit a little;
an alarm that ended by itself, with nothing left of it, widens that of the branch that raised it. Both have a bound, so
that nothing real is ever unlearned. After a few such alarms the state that the machine comes from and goes to (off, the
weekend) is known, if it stayed there for several looks: what flickers never is. Where channels belong does not move
otherwise, but for machines that have shown that they move.
"""

import numpy as np
from numpy.typing import NDArray

from appliance.inference.detector.arena import Integers
from appliance.inference.detector.latch import NO_BRANCH, THRESHOLD
from appliance.inference.detector.memory import BRANCHES, Branch, Memory

NEAR = 0.97  # of the threshold: how far what was let be may come
WIDER = 1.3  # times the units, when a state that raised an alarm was accepted or has gone by itself
WIDEST = 2.5  # times what was learned
RETURNS = 4  # alarms that have ended by themselves: a machine that comes and goes between its states
LONG_NS = 8 * 3_600_000_000_000  # an alarm that stood for so long and ended by itself counts twice: a weekend, a night

Bools = NDArray[np.bool_]


def recurs(memory: Memory, index: Integers) -> Bools:
    """Which assets come and go between states."""
    often: Bools = memory.returns[index] >= RETURNS
    return often


def widen(memory: Memory, index: Integers, settled: Bools) -> Bools:
    """After a look at the assets `index`: which of them had an alarm that ended by itself."""
    reached = memory.held[:, index]
    reached[Branch.LEVEL] = memory.peak[index]
    memory.peak[index] = 0.0
    relieved = memory.relieved[index]
    calm = settled & ~memory.uneasy[index]
    factor = np.where(calm, np.maximum(reached / (THRESHOLD * NEAR), 1.0), 1.0)
    lasting = memory.lasting[index]
    enough = np.where(lasting, np.maximum(memory.reached[index] / (THRESHOLD * NEAR), WIDER), WIDER)
    factor *= np.where(settled & (relieved == np.arange(BRANCHES)[:, None]), enough, 1.0)
    memory.returns[index] += np.where(relieved != NO_BRANCH, 1 + lasting, 0)
    bound = WIDEST * memory.learned[:, index]
    unit = memory.unit[:, index]
    memory.unit[:, index] = np.maximum(np.minimum(unit * factor, bound), unit)
    memory.relieved[index] = NO_BRANCH
    ended: Bools = relieved != NO_BRANCH
    return ended
