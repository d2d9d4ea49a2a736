"""Rows of several callers are computed together where they come together, and each gets its own."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from appliance.errors import DeviceError, ModelError
from appliance.inference.joining import Joining
from appliance.inference.port import Array

PATIENCE_S = 30.0


class Computer:
    """Doubles rows, once the gate is open; refuses negative ones."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.sizes: list[int] = []
        self.at_once = self.most_at_once = 0

    def __call__(self, batch: Array) -> tuple[Array, str]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        self.sizes.append(len(batch))
        self.at_once -= 1
        if (batch < 0).any():
            raise ModelError("negative", "Be positive.")
        return batch * 2, "CPU"


def row(value: float, count: int = 1) -> Array:
    return np.full((count, 3), value, np.float32)


def joined(computer: Computer, batches: list[Array], most: int = 8) -> list["Future[tuple[Array, str]]"]:
    """The first is under way while all others come."""
    joining = Joining(computer, most)
    with ThreadPoolExecutor(len(batches)) as pool:
        answers = [pool.submit(joining, batches[0])]
        assert computer.entered.acquire(timeout=PATIENCE_S)
        for number, batch in enumerate(batches[1:], 1):
            answers.append(pool.submit(joining, batch))
            while len(joining._waiting) < number:
                threading.Event().wait(0.001)
        computer.gate.set()
    return answers


def test_a_call_that_finds_the_model_idle_is_computed_at_once() -> None:
    computer = Computer()
    computer.gate.set()
    rows, device = Joining(computer, 8)(row(3))
    np.testing.assert_array_equal(rows, row(6))
    assert (device, computer.sizes) == ("CPU", [1])


def test_those_that_come_meanwhile_share_the_next_call() -> None:
    computer = Computer()
    answers = joined(computer, [row(value) for value in range(6)])
    for value, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.result()[0], row(2.0 * value))
    assert computer.sizes == [1, 5]
    assert computer.most_at_once == 1


def test_no_more_rows_are_joined_than_may_be_and_large_batches_stay_whole() -> None:
    computer = Computer()
    sizes = [1, 3, 3, 3, 20, 2]
    answers = joined(computer, [row(number, count) for number, count in enumerate(sizes)])
    assert computer.sizes == [1, 6, 3, 20, 2]
    assert [len(answer.result()[0]) for answer in answers] == sizes


def test_one_that_is_refused_spoils_no_other() -> None:
    computer = Computer()
    answers = joined(computer, [row(1), row(2), row(-1), row(3)])
    with pytest.raises(ModelError, match="negative"):
        answers[2].result()
    for place, value in ((0, 1), (1, 2), (3, 3)):
        np.testing.assert_array_equal(answers[place].result()[0], row(2.0 * value))


@pytest.mark.parametrize(
    "error", [DeviceError("gone", "Look."), ZeroDivisionError("a defect")], ids=["device", "defect"]
)
def test_what_fails_is_told_to_each_and_the_next_is_served(error: Exception) -> None:
    computer, failing = Computer(), threading.Event()
    failing.set()

    def compute(batch: Array) -> tuple[Array, str]:
        answer = computer(batch)
        if failing.is_set():
            raise error
        return answer

    joining = Joining(compute, 8)
    computer.gate.set()
    with ThreadPoolExecutor(4) as pool:
        for answer in [pool.submit(joining, row(1)) for _ in range(8)]:
            with pytest.raises(type(error)):
                answer.result(PATIENCE_S)
    failing.clear()
    np.testing.assert_array_equal(joining(row(4))[0], row(8))


def test_threads_get_their_own_rows_back() -> None:
    computer = Computer()
    computer.gate.set()
    joining = Joining(computer, 8)

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            batch = random.random((int(random.integers(1, 6)), 3)).astype(np.float32)
            np.testing.assert_array_equal(joining(batch)[0], batch * 2)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(ask, seed) for seed in range(8)]:
            future.result(PATIENCE_S)
    assert computer.most_at_once == 1
