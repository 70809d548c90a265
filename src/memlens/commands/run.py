"""
What every command that gives a report shares: its options, the scan, and how it is printed.

A command declares what it asks, which kinds of report may answer, and what draws them;
``--json --csv --table --sort --top --budget --strict --color --from --proc`` come with it.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import click

from memlens.commands import common
from memlens.errors import MemlensError, ParseError, UnknownName

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from memlens.report import Report
    from memlens.views.text import Line, TableOptions

_F = TypeVar("_F", bound=Callable[..., Any])
_SEGMENTS_AT_ONCE = 4096
# A scan that takes no longer shows no bar.
_PATIENCE_S = 1.0
_SHOW_CURSOR = b"\x1b[?25h"


class Request(NamedTuple):
    """
    What the options say that every command has.

    :param table: the table that is sorted, cut, and printed as CSV; None is the first.
    :param sort: its columns, ``-`` before one reverses it.
    :param top: rows of it to show, None for all that the view shows.
    :param source: a file with a report to show instead of a scan, ``-`` for standard input.
    """

    as_json: bool
    as_csv: bool
    table: str | None
    sort: tuple[str, ...]
    top: int | None
    budget: float | None
    strict: bool
    color: str
    source: str | None
    proc: str


def _check_budget(
    _ctx: click.Context, _param: click.Parameter, value: float | None
) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"not a number of seconds: {value!r}")
    return value


def _split_names(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value is not None else ()


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON: the whole report."),
    click.option("--csv", "as_csv", is_flag=True, help="Print one table as CSV."),
    click.option(
        "--table", metavar="NAME", help="The table that --csv, --sort and --top mean."
    ),
    click.option(
        "--sort",
        metavar="COLUMN[,COLUMN]",
        callback=_split_names,
        help="Sort by these columns, numbers from the largest; -COLUMN reverses.",
    ),
    click.option("--top", type=click.IntRange(1), metavar="N", help="Only the first N rows."),
    click.option(
        "--budget",
        type=float,
        metavar="SECONDS",
        callback=_check_budget,
        help="End the scan then, and say what is left out.",
    ),
    click.option(
        "--strict", is_flag=True, help="Exit with 3 if anything is unknown or incomplete."
    ),
    click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="When to print colours.",
    ),
    click.option(
        "--no-color", "color", flag_value="never", help="Print no colour (NO_COLOR too)."
    ),
    click.option(
        "--from",
        "source",
        metavar="FILE",
        help="Show what --json wrote, here or elsewhere, instead of scanning.",
    ),
    click.option(
        "--proc",
        default="/proc",
        show_default=True,
        metavar="PATH",
        callback=lambda _ctx, _param, value: value.rstrip("/") or "/",
        help="The proc file system to read.",
    ),
)


def report_options(function: _F) -> _F:
    """Add what every command understands, as one ``Request``."""

    @wraps(function)
    def gathered(**values: Any) -> Any:
        request = Request(**{name: values.pop(name) for name in Request._fields})
        if request.as_json and request.as_csv:
            raise click.UsageError("--json and --csv exclude each other")
        return function(request, **values)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return cast(_F, gathered)


def require(request: Request, value: object, name: str) -> None:
    """
    Refuse a command that does not say what to look at, or says it beside ``--from``.

    :param value: what was given, None or empty if nothing was.
    :param name: what it is called in the usage line.
    :raises click.UsageError: if so.
    """
    is_given = value is not None and value != ()
    if request.source is None and not is_given:
        raise click.UsageError(f"name {name}, or a report by --from")
    if request.source is not None and is_given:
        raise click.UsageError(f"--from shows what is in the file: leave out {name}")


def give(
    request: Request,
    kinds: "Sequence[type[Report]]",
    label: str,
    read: "Callable[..., Report]",
    render: "Callable[[Any, TableOptions], Iterable[Line]]",
    table: str | None = None,
    keep: "Callable[[Any], Report] | None" = None,
) -> None:
    """
    Scan or read a report, print it, and end as the scan ended.

    :param kinds: of report; a scan gives the first, ``--from`` may read any.
    :param label: what is being done, for the progress bar.
    :param read: scans; called with what the library's scans have in common: ``proc``,
        ``budget_s``, ``on_progress``, ``should_stop``.
    :param render: yields the lines for a person.
    :param table: what ``--table`` is if it is not given, None for the first.
    :param keep: leaves of a report, scanned or read, what was asked for; None keeps all.
    :raises click.exceptions.Exit: with the code, unless it is 0.
    :raises click.UsageError: if there is no such table or column.
    """
    if request.source is None:
        # What is wrong is said before the scan, not after it.
        check_names(kinds[0], request, table)
    with Watch(label, request.color) as watch:
        if request.source is not None:
            report = read_report(request.source, kinds)
            check_names(type(report), request, table)
        else:
            report = read(
                proc=request.proc,
                budget_s=request.budget,
                on_progress=watch.on_progress,
                should_stop=watch.should_stop,
            )
        watch.end_scan()
        if keep is not None:
            report = keep(report)
        _print(request, report, request.table or table, render)
    if not report.is_complete:
        common.complain("stopped early: the answer is incomplete")
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    if report.is_wrong:
        raise click.exceptions.Exit(common.EXIT_ERROR)
    if request.strict and not report.is_all_known:
        raise click.exceptions.Exit(common.EXIT_INCOMPLETE)


def check_names(kind: "type[Report]", request: Request, table: str | None) -> None:
    """
    Refuse a table or a column that a kind of report does not have.

    :raises click.UsageError: with the list of what there is.
    """
    fields = kind.table_fields()
    name = request.table or table or next(iter(fields), None)
    if request.table is not None and request.table not in fields:
        error = UnknownName("table", request.table, tuple(fields))
        raise click.BadParameter(str(error), param_hint="--table")
    if name is None:
        if request.sort or request.top or request.as_csv:
            raise click.UsageError("there is no table to sort, cut or print as CSV")
        return
    from memlens.record import columns_of

    columns = tuple(column.name for column in columns_of(fields[name].record))
    for given in request.sort:
        if given.removeprefix("-") not in columns:
            error = UnknownName("column", given, columns)
            raise click.BadParameter(str(error), param_hint="--sort")


def read_report(source: str, kinds: "Sequence[type[Report]]") -> "Report":
    """
    Return the report in a file.

    :param source: the file, ``-`` for standard input.
    :param kinds: of which one it must be.
    :raises MemlensError: if it cannot be read.
    :raises ParseError: if it is damaged, or no report of these.
    """
    from memlens.report import Report

    try:
        if source == "-":
            text = sys.stdin.read()
        else:
            with open(source, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
    except OSError as error:
        raise MemlensError(f"cannot read the report: {error.strerror}", path=source) from error
    report = Report.from_json(text, path=source)
    if not isinstance(report, tuple(kinds)):
        raise ParseError(
            f"a report of another command: {report.SCHEMA}", path=source, text=report.SCHEMA
        )
    return report


def _print(
    request: Request,
    report: "Report",
    table: str | None,
    render: "Callable[[Any, TableOptions], Iterable[Line]]",
) -> None:
    if report.table_fields():
        report = report.arranged(table, sort=request.sort)
    if request.as_json or request.as_csv:
        cut = report.arranged(table, top=request.top) if report.table_fields() else report
        if request.as_json:
            common.write_pieces(cut.to_json())
        else:
            common.write_csv(cut.table(table).to_csv())
        return
    options = table_options(request.color, request.top)
    if not report.is_complete:
        print_lines([incomplete_line()], options.is_colored)
    print_lines(render(report, options), options.is_colored)


def incomplete_line() -> "Line":
    """Return what stands before an answer that was cut short."""
    from memlens.views.text import ALARM, Segment

    return [Segment("INCOMPLETE: the scan ended early", ALARM)]


def table_options(color: str, top: int | None = None) -> "TableOptions":
    """Return how to draw on this terminal."""
    from memlens.views.text import TableOptions

    return TableOptions(
        width=common.terminal_width(),
        is_colored=common.is_colored(color),
        is_unicode=common.is_unicode(),
        top=top,
    )


def print_lines(shown: "Iterable[Line]", is_colored: bool) -> None:
    """Print lines, in colour if asked for; without it rich is left out."""
    if is_colored:
        _paint(shown)
    else:
        common.write_pieces("".join(part.text for part in line) + "\n" for line in shown)


def _paint(shown: "Iterable[Line]") -> None:
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
    :param color: as ``--color`` says it, for the bar.
    """

    def __init__(self, label: str, color: str = "auto") -> None:
        self.label = label
        self.color = color
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

        console = Console(stderr=True, color_system=None if self.color == "never" else "auto")
        self._bar = Progress(console=console, transient=True)
        # What was done before the bar appeared: the next report may be long in coming.
        done, total = self._progress or (0, None)
        self._task = self._bar.add_task(self.label, completed=done, total=total)
        self._bar.start()
