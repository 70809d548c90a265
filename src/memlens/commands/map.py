"""``memlens map PID``: where every page of a process is."""

from dataclasses import dataclass

import click

from memlens.commands import common, old
from memlens.commands.run import Watch
from memlens.errors import MemlensError
from memlens.pages.classes import PageClass
from memlens.residency.capture import map_process
from memlens.residency.records import ProcessMap


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked on the command line."""

    pid: int
    as_json: bool
    as_csv: bool
    pages: bool
    words: bool
    addresses: tuple[int, int] | None
    only: frozenset[PageClass]
    strict: bool
    no_color: bool
    proc: str


def _parse_classes(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> frozenset[PageClass]:
    known = {kind.label: kind for kind in PageClass}
    names = [] if value is None else [name.strip() for name in value.split(",")]
    wrong = [name for name in names if name.replace("-", "_") not in known]
    if wrong:
        raise click.BadParameter(
            f"no such class: {', '.join(map(repr, wrong))}; classes are {', '.join(known)}",
            ctx,
            param,
        )
    return frozenset(known[name.replace("-", "_")] for name in names)


@click.command("map")
@common.pid_argument
@common.json_option
@common.csv_option
@click.option("--pages", is_flag=True, help="Add the runs: consecutive pages of one class.")
@click.option("--words", is_flag=True, help="Add the raw pagemap words that are not zero.")
@common.range_option
@click.option(
    "--only",
    metavar="CLASS[,CLASS]",
    callback=_parse_classes,
    help="Only mappings and runs of these classes.",
)
@common.strict_option
@common.no_color_option
@common.proc_option
def command(**options: object) -> None:
    """
    Show where every page of the process PID is.

    For every mapping: how much of it is in each class, and a strip of where in the
    mapping the classes lie. Below: totals, what could not be known and why, the evidence
    that was used, and what the scan cost. Ctrl-C prints what is known so far; again, it
    kills.
    """
    request = _Request(**options)  # type: ignore[arg-type]
    old.check_formats(request.as_json, request.as_csv)
    if request.as_csv and request.words:
        raise click.UsageError("--words is for text and --json")
    with Watch(
        f"reading process {request.pid}", "never" if request.no_color else "auto"
    ) as watch:
        whole = _scan(request, watch)
        watch.end_scan()
        _print(request, whole)
    is_unknown = bool(whole.counts()[PageClass.UNKNOWN])
    old.finish(watch, whole.is_complete, request.strict, is_unknown)


def _scan(request: _Request, watch: Watch) -> ProcessMap:
    start, stop = request.addresses or (None, None)
    whole = map_process(
        request.pid,
        start=start,
        stop=stop,
        words=request.words,
        proc=request.proc,
        on_progress=watch.on_progress,
        should_stop=watch.should_stop,
    )
    if not whole.mappings:
        where = f" in {start:x}-{stop:x}" if start is not None else ""
        raise MemlensError(f"process {request.pid} has nothing mapped{where}")
    return whole


def _print(request: _Request, whole: ProcessMap) -> None:
    from memlens.views.map import select_classes

    shown = select_classes(whole, request.only) if request.only else whole
    if request.as_json or request.as_csv:
        _print_machine(request, shown)
    else:
        _print_text(request, shown, whole)


def _print_machine(request: _Request, shown: ProcessMap) -> None:
    from memlens.views.formats import render_csv, render_json, render_runs_csv

    if request.as_json:
        common.write_pieces(render_json(shown, request.pages))
    else:
        common.write_csv(render_runs_csv(shown) if request.pages else render_csv(shown))


def _print_text(request: _Request, shown: ProcessMap, whole: ProcessMap) -> None:
    from memlens.views.map import TextOptions, render_map

    options = TextOptions(
        width=common.terminal_width(),
        is_colored=common.is_colored("never" if request.no_color else "auto"),
        is_unicode=common.is_unicode(),
        addresses=request.addresses,
        has_runs=request.pages,
    )
    old.print_lines(render_map(shown, whole, options), options.is_colored)
