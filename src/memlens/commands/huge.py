"""``memlens huge``: huge pages of processes, merged pages and zero pages."""

import os
import re
from functools import partial
from typing import Any

import click

import memlens
from memlens.commands import common, run

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _parse_order(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([kKmMgG]?)", text, re.ASCII)
    if match is None:
        raise ValueError(f"not a size such as 64K: {text!r}")
    pages, rest = divmod(int(match[1]) * _UNITS[match[2].lower()], os.sysconf("SC_PAGE_SIZE"))
    if rest or pages < 2 or pages & (pages - 1):
        raise ValueError(f"not 2, 4, 8, ... pages: {text!r}")
    return pages.bit_length() - 1


@click.command("huge")
@common.pids_argument
@click.option("--cgroup", metavar="PATH", help="The processes of a cgroup and those below.")
@click.option(
    "--cont",
    "blocks",
    multiple=True,
    metavar="SIZE",
    callback=common.converted(_parse_order),
    help="Also count aligned contiguous blocks of this size, as 64K.",
)
@click.option("--rollup", is_flag=True, help="Only the sum, no mappings.")
@run.report_options
def command(
    request: run.Request,
    pids: tuple[int, ...],
    cgroup: str | None,
    blocks: tuple[int, ...],
    rollup: bool,
) -> None:
    """
    Show how huge pages are mapped: transparent ones of every size, and hugetlb.

    Whole or in part, by one PMD or by PTEs, aligned to their size or not; also what KSM
    has merged, and zero pages. The counters have the names and values of the kernel's
    thpmaps.
    """
    run.require(request, pids or cgroup, "PIDs, or --cgroup")
    if pids and cgroup is not None:
        raise click.UsageError("name PIDs, or --cgroup")
    from memlens.views.huge import render

    def read(**scan: Any) -> memlens.HugeReport:
        try:
            return memlens.map_huge(pids, cgroup=cgroup, block_orders=blocks, **scan)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--cont") from error

    draw = partial(render, has_mappings=not rollup)
    run.give(request, (memlens.HugeReport,), "reading huge pages", read, draw)
