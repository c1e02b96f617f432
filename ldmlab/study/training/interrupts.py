"""Signals that stop a training: heeded between its steps."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Stops a training; not KeyboardInterrupt, for which Lightning ends the process."""


class Interrupts:
    """Notes SIGINT and SIGTERM, from `listen` to `restore`, instead of what they do otherwise.

    Within a step the first signal is only noted, for the training to save its state after the step and stop. A second
    one raises Interrupted at once, and so does the first where `in_step` is false, as while samples are scored.
    Signals reach the main thread only: elsewhere nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.in_step = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over both signals from whoever handles them now."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before.setdefault(number, signal.getsignal(number))
                signal.signal(number, self._note)

    def restore(self) -> None:
        """Give both signals back."""
        for number, handler in self._before.items():
            if handler is not None:  # None: not set from Python
                signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        if again or not self.in_step:
            raise Interrupted

    def finish(self, message: str) -> None:
        """After the training has stopped: the signal's own effect, which for SIGTERM is mostly that the process ends.

        KeyboardInterrupt with the message where the process goes on.
        """
        if self.received == signal.SIGTERM:
            print(message, flush=True)
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt(message)
