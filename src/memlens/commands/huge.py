"""``memlens huge``: huge pages of processes, merged pages and zero pages."""

import os
import re

import click

from memlens.commands import common
from memlens.commands.flags import parse_pids
from memlens.commands.run import Watch, make_machine

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _parse_blocks(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(_parse_order, value)))


def _parse_order(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([kKmMgG]?)", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"not a size such as 64K: {text!r}")
    pages, rest = divmod(int(match[1]) * _UNITS[match[2].lower()], os.sysconf("SC_PAGE_SIZE"))
    if rest or pages < 2 or pages & (pages - 1):
        raise click.BadParameter(f"not 2, 4, 8, ... pages: {text!r}")
    return pages.bit_length() - 1


@click.command("huge")
@click.argument("pids", metavar="[PID]...", nargs=-1, callback=parse_pids)
@click.option("--cgroup", metavar="PATH", help="The processes of a cgroup and those below.")
@click.option(
    "--cont",
    "blocks",
    multiple=True,
    metavar="SIZE",
    callback=_parse_blocks,
    help="Also count aligned contiguous blocks of this size, as 64K.",
)
@click.option("--rollup", is_flag=True, help="Only the sum, no mappings.")
@common.json_option
@common.strict_option
@common.proc_option
def command(
    pids: tuple[int, ...],
    cgroup: str | None,
    blocks: tuple[int, ...],
    rollup: bool,
    as_json: bool,
    strict: bool,
    proc: str,
) -> None:
    """
    Show how huge pages are mapped: transparent ones of every size, and hugetlb.

    Whole or in part, by one PMD or by PTEs, aligned to their size or not; also what KSM
    has merged, and zero pages. The counters have the names and values of the kernel's
    thpmaps.
    """
    if bool(pids) == (cgroup is not None):
        raise click.UsageError("name PIDs, or --cgroup")
    from memlens.physical.huge import list_cgroup_pids, map_huge
    from memlens.views.huge import render_json, render_text

    chosen = pids if cgroup is None else list_cgroup_pids(cgroup, make_machine(proc))
    with Watch("reading huge pages") as watch:
        try:
            result = map_huge(
                chosen,
                block_orders=blocks,
                is_strict=cgroup is None,
                proc=proc,
                on_progress=watch.on_progress,
                should_stop=watch.should_stop,
            )
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--cont") from error
        watch.end_scan()
    if as_json:
        common.write_pieces([render_json(result)])
    else:
        common.write_pieces(render_text(result, has_mappings=not rollup))
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    common.strict_exit(strict, bool(result.missed or result.figures.moved_pages))
