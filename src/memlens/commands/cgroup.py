"""``memlens cgroup``: the pages that a memory cgroup is charged."""

from typing import Any

import click

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
    from memlens.physical.records import CgroupList, CgroupPages
    from memlens.views.cgroup import render

    def read(**scan: Any) -> CgroupList | CgroupPages:
        from memlens.physical.cgroup import list_cgroups, read_cgroup

        if path is None:
            return list_cgroups(**scan)
        return read_cgroup(path, directories=directories, **scan)

    kinds = (CgroupList, CgroupPages) if path is None else (CgroupPages,)
    run.give(request, run.Answer(kinds, read, render, "reading page frames"))
