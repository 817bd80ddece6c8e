"""Ending a study before its end: signals, a lost lease, a Ray that died."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

WATCH_SECONDS = 3.0
"""How often Ray is asked whether it lives; it must be silent twice in a row."""
GRACE_SECONDS = 20.0
"""How long Tune may take to come back after the end of Ray."""


class Stop:
    """Why the search stopped before its end; Tune is told through SIGUSR1, which it listens to while it runs."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._say = say
        self.reason = ""
        """The study cannot go on in this driver."""
        self.note = ""
        """Something broke that the next run of the same command mends."""
        self.interrupted = False

    def __bool__(self) -> bool:
        """Whether nothing new may be started."""
        return bool(self.reason or self.note or self.interrupted)

    def end(self, reason: str) -> None:
        """Stop Tune after its current step; from any thread."""
        self.reason = reason
        os.kill(os.getpid(), signal.SIGUSR1)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM end Tune after its current step, and a second one end the process.

        Tune's own SIGINT handler prints and does not say how to continue, so it is switched off.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self._say("Stopping after the reports that are on their way; a second Ctrl-C ends at once.")
            os.kill(os.getpid(), signal.SIGUSR1)

        handlers: dict[int, Any] = {
            signal.SIGINT: handle,
            signal.SIGTERM: handle,
            signal.SIGUSR1: lambda number, frame: None,  # until Tune puts its own there
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handlers[signal.SIGUSR1] if number == signal.SIGUSR1 else handler)

    @contextmanager
    def watch(self, alive: Callable[[], bool], last_word: Callable[[str], None]) -> Iterator[None]:
        """End Tune when ``alive()`` is false twice in a row: it would wait for the dead for ever.

        Where Ray's head has died too, Tune does not come back to be ended, and Ray ends this process without a word:
        ``last_word`` is then told why, and the process ends here.
        """
        over = threading.Event()

        def look() -> None:
            silent = 0
            while not over.wait(WATCH_SECONDS):
                silent = 0 if alive() else silent + 1
                if silent >= 2:
                    self.note = "Ray on this machine has died, and the workers with it."
                    os.kill(os.getpid(), signal.SIGUSR1)
                    if not over.wait(GRACE_SECONDS):
                        last_word(self.note)
                        os._exit(1)

        thread = threading.Thread(target=look, name="ray-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
