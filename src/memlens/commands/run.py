"""What the commands that print tables share: options, and printing lines."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast

import click

from memlens.commands import common

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from memlens.views.lines import Line
    from memlens.views.table import TableOptions


class _Scanned(Protocol):
    """What all results of scans tell."""

    @property
    def is_complete(self) -> bool: ...


_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R", bound=_Scanned)
_SEGMENTS_AT_ONCE = 4096


def sort_option(function: _F) -> _F:
    """Add ``--sort COLUMN`` as ``sort``; what columns there are is for the view to say."""
    return click.option(
        "--sort", metavar="COLUMN", help="Sort by this column; a wrong one lists them all."
    )(function)


def top_option(function: _F) -> _F:
    """Add ``--top N`` as ``top``."""
    return click.option(
        "--top", type=click.IntRange(1), metavar="N", help="Show the first N rows."
    )(function)


def budget_option(function: _F) -> _F:
    """Add ``--budget SECONDS`` as ``budget``."""
    return click.option(
        "--budget",
        type=float,
        metavar="SECONDS",
        callback=_check_budget,
        help="End the scan then, and say what is left out.",
    )(function)


def _check_budget(
    _ctx: click.Context, _param: click.Parameter, value: float | None
) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"not a number of seconds: {value!r}")
    return value


class TableRequest(NamedTuple):
    """What the options of ``scan_options`` say."""

    sort: str | None
    top: int | None
    as_json: bool
    as_csv: bool
    budget: float | None
    strict: bool
    no_color: bool
    proc: str


def scan_options(function: _F) -> _F:
    """Add what every scan that prints tables understands, as one ``TableRequest``."""

    @wraps(function)
    def gathered(**values: Any) -> Any:
        asked = TableRequest(**{name: values.pop(name) for name in TableRequest._fields})
        check_formats(asked.as_json, asked.as_csv)
        return function(asked, **values)

    for option in reversed(
        (
            sort_option,
            top_option,
            common.json_option,
            common.csv_option,
            budget_option,
            common.strict_option,
            common.no_color_option,
            common.proc_option,
        )
    ):
        gathered = option(gathered)
    return cast(_F, gathered)


class Rendering(NamedTuple, Generic[_R]):
    """How a result is printed: as JSON, as CSV, as text, each piece by piece."""

    json: Callable[[_R], Iterable[str]]
    csv: Callable[[_R], Iterable[str]]
    text: Callable[[_R, "TableOptions"], Iterable["Line"]]


def run_scan(
    asked: TableRequest,
    label: str,
    read: Callable[..., _R],
    rendering: Rendering[_R],
    is_missing: Callable[[_R], bool],
) -> None:
    """
    Scan, print what was found, and end as the scan ended.

    :param label: what is being done, for the progress bar.
    :param read: called with what the library's scans have in common.
    :param is_missing: whether anything was missed or is unknown.
    :raises click.exceptions.Exit: with the code, unless it is 0.
    """
    with Watch(label, asked.no_color) as watch:
        found = read(
            proc=asked.proc,
            budget_s=asked.budget,
            on_progress=watch.on_progress,
            should_stop=watch.should_stop,
        )
        watch.end_scan()
        if asked.as_json:
            common.write_pieces(rendering.json(found))
        elif asked.as_csv:
            common.write_csv(rendering.csv(found))
        else:
            options = table_options(asked.no_color)
            print_lines(rendering.text(found, options), options.is_colored)
    finish(watch, found.is_complete, asked.strict, is_missing(found))


def check_sort(sort: str | None, names: list[str]) -> str | None:
    """
    Return the column to sort by as the views know it.

    :raises click.UsageError: if there is none of that name.
    """
    if sort is None:
        return None
    wanted = sort.lower().replace("_", "-")
    if wanted not in names:
        raise click.BadParameter(
            f"no such column: {sort!r}; columns are {', '.join(names)}", param_hint="--sort"
        )
    return wanted


def check_formats(as_json: bool, as_csv: bool) -> None:
    """
    Refuse two formats at once.

    :raises click.UsageError: if both are asked for.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")


def table_options(no_color: bool) -> "TableOptions":
    """Return how to draw on this terminal."""
    from memlens.views.table import TableOptions

    return TableOptions(
        width=common.terminal_width(),
        is_colored=common.is_colored(no_color),
        is_unicode=common.is_unicode(),
    )


def print_lines(shown: Iterable["Line"], is_colored: bool) -> None:
    """Print lines, in colour if asked for; without it rich is left out."""
    if is_colored:
        _paint(shown)
    else:
        common.write_pieces("".join(part.text for part in line) + "\n" for line in shown)


def _paint(shown: Iterable["Line"]) -> None:
    """Print lines in colour, many at a time."""
    from rich.segment import Segment, Segments
    from rich.style import Style

    console = common.console()
    ready: list[Segment] = []
    for line in shown:
        ready += [Segment(text, Style.parse(style)) for text, style in line]
        ready.append(Segment.line())
        if len(ready) > _SEGMENTS_AT_ONCE:
            console.print(Segments(ready), end="", crop=False)
            ready = []
    console.print(Segments(ready), end="", crop=False)


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


def finish(watch: Watch, is_complete: bool, strict: bool, is_missing: bool) -> None:
    """
    End a command as its scan ended.

    :param is_missing: whether anything was missed or is unknown.
    :raises click.exceptions.Exit: with the code, unless it is 0.
    """
    if not is_complete:
        common.complain("stopped early: the answer is incomplete")
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    common.strict_exit(strict, is_missing or not is_complete)


# A scan that takes no longer shows no bar.
_PATIENCE_S = 1.0
_SHOW_CURSOR = b"\x1b[?25h"
