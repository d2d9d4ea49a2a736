"""Micro-batches of those who call at the same time: rows that come while others are computed share the next call.

Nobody waits for company: a call that finds the model idle is computed at once. What it costs is a lock and an event.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from appliance.errors import InferenceError
from appliance.inference.port import Array

log = logging.getLogger(__name__)

Compute = Callable[[Array], tuple[Array, str]]  # rows to rows, and the device that computed them


class Joining:
    """`compute` over the rows of several threads, one call at a time, `most` rows of several callers in one. Rows must
    not see each other."""

    def __init__(self, compute: Compute, most: int) -> None:
        self._compute, self._most = compute, most
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._busy = False

    def __call__(self, batch: Array) -> tuple[Array, str]:
        """What `compute` gives, or raises, for this batch alone."""
        call = _Call(batch)
        with self._lock:
            self._waiting.append(call)
            leading = not self._busy
            if leading:
                self._busy = True
                self._appoint()
        call.turn.wait()
        if call.group:
            self._lead(call.group)
        return call.answer()

    def _lead(self, group: "list[_Call]") -> None:
        """Compute for all of the group, and appoint who computes for those that came meanwhile."""
        try:
            self._answer(group)
        finally:
            with self._lock:
                self._appoint()
            for call in group[1:]:
                call.turn.set()

    def _appoint(self) -> None:
        """With the lock: the first that waits computes for itself and as many of the others as fit."""
        if not self._waiting:
            self._busy = False
            return
        first = self._waiting.popleft()
        group, rows = [first], len(first.batch)
        while self._waiting and rows + len(self._waiting[0].batch) <= self._most:
            rows += len(self._waiting[0].batch)
            group.append(self._waiting.popleft())
        first.group = group
        first.turn.set()

    def _answer(self, group: "list[_Call]") -> None:
        if len(group) > 1:
            try:
                self._answer_together(group)
                return
            except Exception as error:  # noqa: BLE001 - one of them may be to blame: each is asked alone
                log.debug("%d requests are computed one by one: %s", len(group), error)
        for call in group:
            try:
                call.rows, call.device = self._compute(call.batch)
            except Exception as error:  # noqa: BLE001 - it belongs to the caller, in whose thread it is raised
                call.error = error

    def _answer_together(self, group: "list[_Call]") -> None:
        rows, device = self._compute(np.concatenate([call.batch for call in group]))
        start = 0
        for call in group:
            call.rows, call.device = rows[start : start + len(call.batch)], device
            start += len(call.batch)


class _Call:
    def __init__(self, batch: Array) -> None:
        self.batch = batch
        self.turn = threading.Event()  # answered, or appointed
        self.group: list[_Call] = []  # that this one computes for, itself first
        self.rows: Array | None = None
        self.device = ""
        self.error: Exception | None = None

    def answer(self) -> tuple[Array, str]:
        if self.error is not None:
            raise self.error
        if self.rows is None:
            raise InferenceError("the rows that were computed together with these failed by a defect", "See the log.")
        return self.rows, self.device
