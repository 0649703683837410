"""Ending a long run cleanly when it is interrupted."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


def leave_signals_to_parent(worker: int = 0) -> None:
    """Lets a process that reads for another one live on when a signal comes to all of them, until the other is done.

    Args:
        worker: Its number, which a DataLoader gives.
    """
    for number in Interrupt.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interrupt:
    """While it is entered, the first SIGINT or SIGTERM asks the work to stop, and a second one ends the process.

    Nothing is waited for then, neither threads that read nor files that are written, as any of them may be what hangs.

    Args:
        stop: What to call to ask the work to stop.
        notice: What to print then, if anything.
        ends_process: Whether the second signal ends the process; else it raises a `KeyboardInterrupt` where the work
            is, for a process that goes on with something else.

    Attributes:
        number: The signal that came, 0 if none has.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    NOTICE = "stopping when what was begun is saved; once more to stop at once"

    def __init__(self, stop: Callable[[], None], notice: str = NOTICE, ends_process: bool = True) -> None:
        self.stop = stop
        self.ends_process = ends_process
        self.notice = notice
        self.number = 0

    @property
    def status(self) -> int:
        """The exit status that tells of the signal: 128 plus its number, 0 if none came."""
        return 128 + self.number if self.number else 0

    def __enter__(self) -> "Interrupt":
        # Python lets only the main thread handle signals; elsewhere the caller decides how to stop.
        self.active = threading.current_thread() is threading.main_thread()
        if self.active:
            self.earlier = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number and self.ends_process:
            os._exit(128 + number)
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        self.stop()
        if self.notice:
            print(f"\n{self.notice}", file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            for number, handler in self.earlier.items():
                signal.signal(number, handler)
