"""``memlens cgroup``: the pages that a memory cgroup is charged."""

from typing import Any

import click

import memlens
from memlens.commands import run


@click.command("cgroup")
@click.argument("path", metavar="[PATH]", required=False)
@click.option(
    "--dir",
    "directories",
    multiple=True,
    metavar="DIR",
    help="Look for cached files in there, too.",
)
@run.report_options
def command(request: run.Request, path: str | None, directories: tuple[str, ...]) -> None:
    """
    Show what pages a memory cgroup is charged, of what kind, whose, and used by whom.

    PATH is a directory of the cgroup file system, or a path as /proc/PID/cgroup has it;
    cgroups below it count in. Without PATH: all cgroups, each by itself.
    """
    if path is None and directories:
        raise click.UsageError("--dir is for one cgroup: name it")
    from memlens.views.cgroup import render

    def read(**scan: Any) -> memlens.CgroupList | memlens.CgroupPages:
        if path is None:
            return memlens.list_cgroups(**scan)
        return memlens.read_cgroup(path, directories=directories, **scan)

    lists = () if path is not None else (memlens.CgroupList,)
    run.give(request, (*lists, memlens.CgroupPages), "reading page frames", read, render)
