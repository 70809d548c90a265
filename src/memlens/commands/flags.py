"""``memlens flags``: pages by combination of kpageflags."""

from typing import Any

import click

import memlens
from memlens.commands import common, run

_INODE_LIMIT = 1 << 64


def _check_where(text: str) -> str:
    from memlens.pages.flagfilter import parse_where

    parse_where(text)
    return text


def _check_bits(text: str) -> str:
    from memlens.pages.flagfilter import parse_bits

    parse_bits(text)
    return text


def _check_cgroup(text: str) -> str:
    number = text.removeprefix("@")
    if number != text and not (number.isdecimal() and int(number) < _INODE_LIMIT):
        raise ValueError(f"not an inode number: {text!r}")
    return text


@click.command("flags")
@common.pids_argument
@click.option("--file", "files", multiple=True, metavar="PATH", help="Cached pages of a file.")
@click.option(
    "--cgroup",
    metavar="PATH",
    callback=common.converted(_check_cgroup),
    help="Frames charged to a cgroup, or to @INODE.",
)
@click.option("--machine", is_flag=True, help="All frames of the machine.")
@click.option(
    "--where",
    metavar="EXPR",
    callback=common.converted(_check_where),
    help="Only these: 'anon and not (lru or dirty)'.",
)
@click.option(
    "-b",
    "--bits",
    multiple=True,
    metavar="SPEC",
    callback=common.converted(_check_bits),
    help="As page-types -b has it.",
)
@click.option(
    "--raw", "is_raw", is_flag=True, help="Show undocumented bits too, as page-types -r."
)
@click.option("--list", "is_list", is_flag=True, help="List ranges of pages.")
@common.range_option
@run.report_options
def command(
    request: run.Request,
    machine: bool,
    is_list: bool,
    **asked: Any,
) -> None:
    """
    Count pages by combination of the flags that the kernel keeps for each.

    The pages are those that processes map, that hold a file, that a cgroup is charged, or
    all. --range takes addresses; with --file offsets; with --machine and --cgroup physical
    addresses. --where looks at every bit, -b at the bits that are shown.
    """
    whose = [asked["pids"], asked["files"], asked["cgroup"] is not None, machine]
    run.require(request, any(whose) or None, "PIDs, --file, --cgroup, or --machine")
    if sum(map(bool, whose)) > 1:
        raise click.UsageError("name PIDs, or --file, or --cgroup, or --machine")
    from memlens.views.flags import render

    def read(**scan: Any) -> memlens.FlagReport:
        return (memlens.list_flags if is_list else memlens.count_flags)(**asked, **scan)

    table = "ranges" if is_list else None
    label = "listing pages" if is_list else "reading page flags"
    run.give(request, (memlens.FlagReport,), label, read, render, table)
