"""One thread that works off what waits, and does together what can be done together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[Any, list[Any]], Sequence[Any]]
"""Does a task for some items, one result for each: what came of it, or the exception that only this item ends in."""


@dataclass(eq=False)
class Job:
    """One item of a task; `size` is what it takes of a batch."""

    task: Hashable
    item: Any
    size: int
    done: Future[Any] = field(default_factory=Future)


class Batcher:
    """Does jobs in the order in which they came, each with all waiting ones of an equal task that fit into a batch.

    It never waits for a batch to fill: while one is done, the next one gathers. The models are loaded and used in its
    thread alone. Where a batch fails, its jobs are done one by one, so that only the one at fault fails.
    """

    def __init__(self, start: Callable[[], None], work: Work, most: int):
        """start: called first, in the thread; most: size of a batch, which one larger job alone may exceed."""
        self.ready: Future[None] = Future()
        self._start, self._work, self._most = start, work, most
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="latentwire-batcher", daemon=True)
        self._thread.start()

    def submit(self, task: Hashable, item: Any, size: int = 1) -> Future[Any]:
        """Have an item done; cancelling its future takes it out again as long as it waits."""
        job = Job(task, item, size)
        with self._changed:
            if not self._open:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(job)
            self._changed.notify()
        job.done.add_done_callback(lambda done: self._forget(job) if done.cancelled() else None)
        return job.done

    def _forget(self, job: Job) -> None:
        with self._changed, suppress(ValueError):  # it may be gone already
            self._waiting.remove(job)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs that are not begun."""
        return len(self._waiting)

    def close(self, seconds: float) -> None:
        """Cancel what waits, and wait for so long for what is being done."""
        with self._changed:
            self._open = False
            for job in list(self._waiting):
                job.done.cancel()
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        while batch := self._take():
            self._do(batch)

    def _take(self) -> list[Job]:
        """The next batch, as soon as there is one; nothing once closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                batch: list[Job] = []
                left: deque[Job] = deque()
                size = 0
                for job in self._waiting:
                    fits = not batch or (job.task == batch[0].task and size + job.size <= self._most)
                    if not fits:
                        left.append(job)
                    elif job.done.set_running_or_notify_cancel():
                        batch.append(job)
                        size += job.size
                self._waiting = left
                if batch or not self._open:
                    return batch

    def _do(self, jobs: list[Job]) -> None:
        try:
            results = self._work(jobs[0].task, [job.item for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
            else:
                for job in jobs:
                    self._do([job])
            return
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)
