"""Interrupts: the first one ends a run after the step in progress, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from int8tile.finetune.processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher passes on the signal that a terminal has sent to all: both count as one.
ECHO_SECONDS = 1.0


class InterruptedRun(KeyboardInterrupt):
    """A run was interrupted, and can go on from what it has saved."""


class Interruption:
    """Whether the run was asked to end.

    Args:
        processes: The run's processes; an interrupt of one ends all.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._waits = False
        self._asked = False
        self._asked_at = 0.0

    @property
    def asked(self) -> bool:
        """Whether any process was interrupted; all must ask at the same time."""
        return self._processes.any(self._asked)

    @property
    def asked_here(self) -> bool:
        """Whether this process was interrupted."""
        return self._asked

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Let the first interrupt wait for the step in progress; elsewhere it stops at once."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM; does nothing outside the main thread, which they go to."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self._handle) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and self._is_echo():
            return
        if self._asked or not self._waits:
            raise KeyboardInterrupt
        self._asked = True
        self._asked_at = time.monotonic()
        if self._processes.first:  # a print could be what the signal came in the middle of
            os.write(2, b"\nending after the step in progress; once more to stop at once\n")

    def _is_echo(self) -> bool:
        return self._processes.count > 1 and time.monotonic() - self._asked_at < ECHO_SECONDS
