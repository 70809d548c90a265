"""``memlens sharing``: what processes share, and what was copied since a fork."""

import click

from memlens.commands import common
from memlens.commands.flags import parse_pids
from memlens.commands.run import Watch


@click.command("sharing")
@click.argument("pids", metavar="PID...", nargs=-1, required=True, callback=parse_pids)
@click.option("--tree", is_flag=True, help="Add all that descend from them.")
@click.option("--mappings", is_flag=True, help="List every mapping of every process.")
@common.json_option
@common.strict_option
@common.proc_option
def command(
    pids: tuple[int, ...],
    tree: bool,
    mappings: bool,
    as_json: bool,
    strict: bool,
    proc: str,
) -> None:
    """
    Show what processes use alone and together, by page frame.

    For each: RSS, PSS, USS and what its exit would free. For each pair: the memory that
    both map. For a child that was forked from another of them: what it still shares with
    its parent, what one of the two has copied since by writing, and what is new.
    """
    from memlens.commands.common import is_unicode, terminal_width
    from memlens.sharing.frames import read_sharing
    from memlens.views.sharing import render_json, render_text

    with Watch("reading page tables") as watch:
        result = read_sharing(
            pids,
            has_descendants=tree,
            proc=proc,
            on_progress=watch.on_progress,
            should_stop=watch.should_stop,
        )
        watch.end_scan()
    if as_json:
        common.write_pieces([render_json(result)])
    else:
        common.write_pieces(
            render_text(
                result,
                width=terminal_width(),
                has_mappings=mappings,
                is_unicode=is_unicode(),
            )
        )
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    is_partial = result.is_hidden or not result.is_complete or bool(result.missed)
    has_moved = any(process.moved_pages for process in result.processes)
    common.strict_exit(strict, is_partial or has_moved)
