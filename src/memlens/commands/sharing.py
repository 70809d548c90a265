"""``memlens sharing``: what processes share, and what was copied since a fork."""

from functools import partial
from typing import Any

import click

import memlens
from memlens.commands import common, run


@click.command("sharing")
@common.pids_argument
@click.option("--tree", is_flag=True, help="Add all that descend from them.")
@click.option("--mappings", is_flag=True, help="List every mapping of every process.")
@run.report_options
def command(request: run.Request, pids: tuple[int, ...], tree: bool, mappings: bool) -> None:
    """
    Show what processes use alone and together, by page frame.

    For each: RSS, PSS, USS and what its exit would free. For each pair: the memory that
    both map. For a child that was forked from another of them: what it still shares with
    its parent, what one of the two has copied since by writing, and what is new.
    """
    run.require(request, pids, "PID")
    if request.source is not None and tree:
        raise click.UsageError("--from shows what is in the file: leave out --tree")
    from memlens.views.sharing import render

    def read(**scan: Any) -> memlens.Sharing:
        return memlens.read_sharing(pids, has_descendants=tree, **scan)

    draw = partial(render, table=request.table or "processes", has_mappings=mappings)
    run.give(request, (memlens.Sharing,), "reading page tables", read, draw)
