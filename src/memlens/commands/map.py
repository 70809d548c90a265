"""``memlens map PID``: where every page of a process is."""

import dataclasses
from functools import partial
from typing import Any

import click

import memlens
from memlens.commands import common, run


def _parse_classes(text: str) -> frozenset[memlens.PageClass]:
    known = {kind.label: kind for kind in memlens.PageClass}
    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name.replace("-", "_") not in known]
    if wrong:
        raise ValueError(
            f"no such class: {', '.join(map(repr, wrong))}; classes are {', '.join(known)}"
        )
    return frozenset(known[name.replace("-", "_")] for name in names)


@click.command("map")
@common.pid_argument
@click.option("--pages", is_flag=True, help="Add the runs: consecutive pages of one class.")
@click.option("--words", is_flag=True, help="Add the raw pagemap words that are not zero.")
@common.range_option
@click.option(
    "--only",
    metavar="CLASS[,CLASS]",
    callback=common.converted(_parse_classes),
    help="Only mappings and runs of these classes.",
)
@run.report_options
def command(
    request: run.Request,
    pid: int | None,
    pages: bool,
    words: bool,
    addresses: tuple[int, int] | None,
    only: frozenset[memlens.PageClass] | None,
) -> None:
    """
    Show where every page of the process PID is.

    For every mapping: how much of it is in each class, and a strip of where in the
    mapping the classes lie. Below: totals, what could not be known and why, the evidence
    that was used, and what the scan cost. Ctrl-C prints what is known so far; again, it
    kills.
    """
    run.require(request, pid, "PID")
    if request.source is not None and (words or addresses is not None):
        raise click.UsageError("--words and --range are for a scan: leave out --from")
    from memlens.views.map import render

    def read(**scan: Any) -> memlens.ProcessMap:
        start, stop = addresses or (None, None)
        whole = memlens.map_process(pid or 0, start=start, stop=stop, words=words, **scan)
        if not len(whole.mappings):
            where = f" in {start:x}-{stop:x}" if addresses is not None else ""
            raise memlens.MemlensError(f"process {pid} has nothing mapped{where}")
        return whole

    def keep(whole: memlens.ProcessMap) -> memlens.ProcessMap:
        from memlens.residency.tables import select_classes

        found = select_classes(whole, only) if only else whole
        if not request.as_json or pages:
            return found
        tables = {name: table for name, table in found.tables.items() if name != "runs"}
        return dataclasses.replace(found, tables=tables)

    # The runs are what --pages asks for.
    table = "runs" if pages and request.as_csv else None
    draw = partial(render, has_runs=pages)
    label = f"reading process {pid}"
    run.give(request, (memlens.ProcessMap,), label, read, draw, table, keep)
