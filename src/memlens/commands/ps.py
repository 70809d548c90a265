"""``memlens ps``: what processes use, shared pages told apart."""

from typing import Any

import click

import memlens
from memlens.commands import common, run


def _parse_user(text: str) -> int:
    import pwd

    if text.isascii() and text.isdigit() and len(text) <= 10:
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"no such user: {text!r}") from None


@click.command("ps")
@common.pids_argument
@click.option(
    "--user",
    metavar="USER",
    callback=common.converted(_parse_user),
    help="Processes of this user.",
)
@click.option("--cgroup", metavar="PATH", help="Processes of this cgroup and those below.")
@click.option("--name", metavar="NAME", help="Processes of this name.")
@click.option(
    "--group-by",
    type=click.Choice(["name", "user", "cgroup"]),
    help="Show groups, in which a page that many map counts once.",
)
@run.report_options
def command(
    request: run.Request,
    pids: tuple[int, ...],
    user: int | None,
    cgroup: str | None,
    name: str | None,
    group_by: str | None,
) -> None:
    """
    List processes by what they use: all, or the processes PID.

    RSS is what a process maps; in PSS each page is divided by how often it is mapped; USS is
    what nobody else maps. Swap: its private pages there, and its part of swap, in which each
    slot is divided among those that have it, of shared memory too. Freed on exit is the RAM
    that its end would give back.
    """
    chosen = (pids or None, user, cgroup, name, group_by)
    if request.source is not None and chosen != (None,) * len(chosen):
        raise click.UsageError("--from shows what is in the file: leave out PID and filters")
    from memlens.views.ps import render

    def read(**scan: Any) -> memlens.ProcessList:
        keep = memlens.ProcessFilter(user, cgroup, name)
        return memlens.list_processes(pids or None, group_by=group_by, keep=keep, **scan)

    table = None if group_by is None else "groups"
    run.give(request, (memlens.ProcessList,), "reading processes", read, render, table)
