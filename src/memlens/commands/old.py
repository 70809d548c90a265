"""What commands share that give no report yet: goes with the last of them."""

import math
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast

import click

from memlens.commands import common
from memlens.commands.run import Watch

if TYPE_CHECKING:
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
    with Watch(label, "never" if asked.no_color else "auto") as watch:
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
        is_colored=common.is_colored("never" if no_color else "auto"),
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
