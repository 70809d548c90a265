"""``memlens shm``: every shared-memory object of the machine, or one page by page."""

from functools import partial
from typing import Any

import click

import memlens
from memlens.commands import run


@click.command("shm")
@click.argument("name", metavar="[OBJECT]", required=False)
@click.option("--pages", is_flag=True, help="Add the runs: consecutive pages of one class.")
@run.report_options
def command(request: run.Request, name: str | None, pages: bool) -> None:
    """
    List every shared-memory object of the machine once: memfds, tmpfs files, System V
    segments, shared anonymous memory, also those that no process holds; and set their sum
    against Shmem of /proc/meminfo.

    With OBJECT, show that one page by page, and who maps which part: a path, PID:FD,
    sysv:ID, or inode:DEV:INO with the device as in /proc/PID/maps (inode:00:01:5).
    """
    if request.source is not None and name is not None:
        raise click.UsageError("--from shows what is in the file: leave out OBJECT")
    is_list = request.source is None and name is None
    runs = pages or request.table == "runs"
    if pages and is_list and not (request.as_json or request.table == "runs"):
        raise click.UsageError("--pages is for one OBJECT, or for --json")
    from memlens.views.shm import render

    def read(**scan: Any) -> memlens.Inventory:
        return memlens.list_shared_memory(name, runs=runs, **scan)

    draw = partial(render, has_runs=pages)
    run.give(request, (memlens.Inventory,), "reading shared memory", read, draw)
