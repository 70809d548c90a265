"""``memlens shm``: every shared-memory object of the machine, or one page by page."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import click

from memlens.commands import old

if TYPE_CHECKING:
    from memlens.views.lines import Line
    from memlens.views.table import TableOptions


@click.command("shm")
@click.argument("name", metavar="[OBJECT]", required=False)
@click.option("--pages", is_flag=True, help="Add the runs: consecutive pages of one class.")
@old.scan_options
def command(asked: old.TableRequest, name: str | None, pages: bool) -> None:
    """
    List every shared-memory object of the machine once: memfds, tmpfs files, System V
    segments, shared anonymous memory, also those that no process holds; and set their sum
    against Shmem of /proc/meminfo.

    With OBJECT, show that one page by page, and who maps which part: a path, PID:FD,
    sysv:ID, or inode:DEV:INO with the device as in /proc/PID/maps (inode:00:01:5).
    """
    if pages and name is None and not asked.as_json:
        raise click.UsageError("--pages is for one OBJECT, or for --json")
    from memlens.views import shm as view

    sort = old.check_sort(asked.sort, view.list_sorts())
    from memlens.shm.inventory import list_shared_memory
    from memlens.shm.records import Inventory

    top = asked.top

    def render(found: Inventory, options: "TableOptions") -> Iterator["Line"]:
        if name is None:
            return view.render_text(found, options, sort, top)
        from memlens.views.shm import render_objects

        return render_objects(found, options, pages)

    old.run_scan(
        asked,
        "reading shared memory",
        partial(list_shared_memory, name),
        old.Rendering(
            json=lambda found: view.render_json(found, sort, top, pages),
            csv=lambda found: view.render_inventory_csv(found, sort, top),
            text=render,
        ),
        lambda found: bool(found.missed) or (name is None and found.remainder_pages != 0),
    )
