"""What a user sees and does while a scan runs: a progress bar, and Ctrl-C."""

import os
import signal
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# A scan that takes no longer shows no bar.
_PATIENCE_S = 1.0
_SHOW_CURSOR = b"\x1b[?25h"


class Watch:
    """
    A context in which Ctrl-C asks a scan to stop, and a long one shows its progress.

    The first Ctrl-C sets ``is_interrupted``: the scan returns what it has, and that is
    printed; the second kills.  A bar is drawn on standard error if that is a terminal,
    after a second.

    :param label: what is being done, for the bar.
    :param no_color: whether the bar is to have no colour.
    """

    def __init__(self, label: str, no_color: bool = False) -> None:
        self.label = label
        self.no_color = no_color
        self.is_interrupted = False
        self._began = time.monotonic()
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._previous: Any = None
        self._progress: tuple[int, int] | None = None

    def __enter__(self) -> "Watch":
        # One who starts us in the background with Ctrl-C ignored means it.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        self.end_scan()

    def end_scan(self) -> None:
        """Take the bar away; twice is fine."""
        if self._bar is not None:
            self._bar.stop()

    def should_stop(self) -> bool:
        """Return whether Ctrl-C was pressed; asked between pieces of the scan."""
        self._show()
        return self.is_interrupted

    def on_progress(self, done_pages: int, total_pages: int) -> None:
        """Move the bar."""
        self._progress = done_pages, total_pages
        self._show()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done_pages, total=total_pages)

    def _interrupt(self, *_: object) -> None:
        self.is_interrupted = True
        if self._bar is not None:
            # The second, which kills, leaves no time for what the bar has hidden.
            os.write(sys.stderr.fileno(), _SHOW_CURSOR)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _show(self) -> None:
        if not self._is_shown or self._bar is not None:
            return
        if time.monotonic() - self._began < _PATIENCE_S:
            return
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True, color_system=None if self.no_color else "auto")
        self._bar = Progress(console=console, transient=True)
        # What was done before the bar appeared: the next report may be long in coming.
        done, total = self._progress or (0, None)
        self._task = self._bar.add_task(self.label, completed=done, total=total)
        self._bar.start()
