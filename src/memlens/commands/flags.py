"""``memlens flags``: pages by combination of kpageflags."""

from typing import Any

import click

from memlens.commands import common, run

_INODE_LIMIT = 1 << 64


def parse_pids(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> tuple[int, ...]:
    """Return PIDs, each once."""
    for text in value:
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not int(text):
            raise click.BadParameter(f"not a PID: {text!r}")
    return tuple(dict.fromkeys(map(int, value)))


def _check_where(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    from memlens.pages.flagfilter import FilterError, parse_where

    try:
        if value is not None:
            parse_where(value)
    except FilterError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _check_bits(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    from memlens.pages.flagfilter import FilterError, parse_bits

    try:
        for text in value:
            parse_bits(text)
    except FilterError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _check_cgroup(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> str | None:
    if value is not None and value.startswith("@"):
        number = value[1:]
        if not number.isdecimal() or int(number) >= _INODE_LIMIT:
            raise click.BadParameter(f"not an inode number: {value!r}")
    return value


@click.command("flags")
@click.argument("pids", metavar="[PID]...", nargs=-1, callback=parse_pids)
@click.option("--file", "files", multiple=True, metavar="PATH", help="Cached pages of a file.")
@click.option(
    "--cgroup",
    metavar="PATH",
    callback=_check_cgroup,
    help="Frames charged to a cgroup, or to @INODE.",
)
@click.option("--machine", is_flag=True, help="All frames of the machine.")
@click.option(
    "--where",
    metavar="EXPR",
    callback=_check_where,
    help="Only these: 'anon and not (lru or dirty)'.",
)
@click.option(
    "-b",
    "--bits",
    multiple=True,
    metavar="SPEC",
    callback=_check_bits,
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
    from memlens.physical.records import FlagReport
    from memlens.views.flags import render

    def read(**scan: Any) -> FlagReport:
        from memlens.physical.flagreport import count_flags, list_flags

        return (list_flags if is_list else count_flags)(**asked, **scan)

    table = "ranges" if is_list else None
    label = "listing pages" if is_list else "reading page flags"
    run.give(request, run.Answer((FlagReport,), read, render, label, table))
