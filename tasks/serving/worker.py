"""One thread for a role's models, and a queue with an end.

One is enough: torch spreads a single request over the cores, and a pipeline draws one picture at a time anyway. It also
makes the exchange of models simple: what was asked first is answered first, so that nobody who has seen the new version
is answered by the old one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Busy", "Worker"]

T = TypeVar("T")
_MEMORY = 0.8  # of the mean time of a request, per request


class Busy(Exception):
    """The queue is full.

    Attributes:
        seconds: after which there is likely room, whole, at least 1.
    """

    def __init__(self, room: int, seconds: int) -> None:
        super().__init__(f"{room} requests are waiting already; try again in {seconds} s")
        self.seconds = seconds


class Worker:
    """Answers one request after the other.

    Args:
        name: of its thread.
        room: requests accepted and not yet answered, at most, the one that is being answered included.

    Attributes:
        abandoned: accepted requests that nobody waited for to the end.
    """

    def __init__(self, name: str, room: int) -> None:
        self.room = room
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self.abandoned = 0
        self._inside = 0
        self._mean = 0.0

    @property
    def waiting(self) -> int:
        """Requests accepted and not yet answered."""
        return self._inside

    def submit(self, question: Callable[[], T]) -> Future[T]:
        """Accept a request.

        Raises:
            Busy: there is no room.
        """
        with self._lock:
            if self._inside >= self.room:
                raise Busy(self.room, max(1, math.ceil(self._mean)))
            self._inside += 1
        future = self._pool.submit(self._timed, question)
        future.add_done_callback(self._leave)
        return future

    def after_those(self, job: Callable[[], object]) -> None:
        """Do something once every request accepted so far is answered."""
        self._pool.submit(job)

    def close(self) -> None:
        """Answer what was accepted and end."""
        self._pool.shutdown(wait=True)

    def _timed(self, question: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return question()
        finally:
            took = time.monotonic() - began
            self._mean = took if self._mean == 0.0 else _MEMORY * self._mean + (1 - _MEMORY) * took

    def _leave(self, _: Future[T]) -> None:
        with self._lock:
            self._inside -= 1
