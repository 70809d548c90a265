"""``memlens shm``: every shared-memory object of the machine, or one page by page."""

import click

from memlens.commands import common, tables
from memlens.commands.watch import Watch


@click.command("shm")
@click.argument("name", metavar="[OBJECT]", required=False)
@click.option("--pages", is_flag=True, help="Add the runs: consecutive pages of one class.")
@tables.sort_option
@tables.top_option
@common.json_option
@common.csv_option
@tables.budget_option
@common.strict_option
@common.no_color_option
@common.proc_option
def command(
    name: str | None,
    pages: bool,
    sort: str | None,
    top: int | None,
    as_json: bool,
    as_csv: bool,
    budget: float | None,
    strict: bool,
    no_color: bool,
    proc: str,
) -> None:
    """
    List every shared-memory object of the machine once: memfds, tmpfs files, System V
    segments, shared anonymous memory, also those that no process holds; and set their sum
    against Shmem of /proc/meminfo.

    With OBJECT, show that one page by page, and who maps which part: a path, PID:FD,
    sysv:ID, or inode:DEV:INO with the device as in /proc/PID/maps (inode:00:01:5).
    """
    tables.check_formats(as_json, as_csv)
    if pages and name is None and not as_json:
        raise click.UsageError("--pages is for one OBJECT, or for --json")
    from memlens.views import inventory as view

    sort = tables.check_sort(sort, view.list_sorts())
    from memlens.account.inventory import list_shared_memory

    with Watch("reading shared memory") as watch:
        found = list_shared_memory(
            name,
            proc=proc,
            budget_s=budget,
            on_progress=watch.on_progress,
            should_stop=watch.should_stop,
        )
        watch.end_scan()
        if as_json:
            common.write_pieces(view.render_json(found, sort, top, pages))
        elif as_csv:
            common.write_pieces(view.render_inventory_csv(found, sort, top))
        else:
            options = tables.table_options(no_color)
            if name is None:
                lines = view.render_text(found, options, sort, top)
            else:
                from memlens.views.sharedobject import render_objects

                lines = render_objects(found, options, pages)
            tables.print_lines(lines, options.is_colored)
    is_missing = bool(found.missed) or (name is None and found.remainder_pages != 0)
    tables.finish(watch, found.is_complete, strict, is_missing)
