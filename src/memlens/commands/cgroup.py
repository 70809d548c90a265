"""``memlens cgroup``: the pages that a memory cgroup is charged."""

import click

from memlens.commands import common
from memlens.commands.run import Watch


@click.command("cgroup")
@click.argument("path", metavar="[PATH]", required=False)
@click.option(
    "--dir",
    "directories",
    multiple=True,
    metavar="DIR",
    help="Look for cached files in there, too.",
)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, metavar="N")
@common.json_option
@common.strict_option
@common.proc_option
def command(
    path: str | None,
    directories: tuple[str, ...],
    top: int,
    as_json: bool,
    strict: bool,
    proc: str,
) -> None:
    """
    Show what pages a memory cgroup is charged, of what kind, whose, and used by whom.

    PATH is a directory of the cgroup file system, or a path as /proc/PID/cgroup has it;
    cgroups below it count in. Without PATH: all cgroups, each by itself.
    """
    if path is None and directories:
        raise click.UsageError("--dir is for one cgroup: name it")
    with Watch("reading page frames") as watch:
        if path is None:
            is_incomplete = _list(watch, as_json, proc)
        else:
            is_incomplete = _show(path, directories, top, watch, as_json, proc)
    if watch.is_interrupted:
        raise click.exceptions.Exit(common.EXIT_INTERRUPTED)
    common.strict_exit(strict, is_incomplete)


def _list(watch: Watch, as_json: bool, proc: str) -> bool:
    from memlens.commands.common import terminal_width
    from memlens.physical.cgroup import list_cgroups
    from memlens.views.cgroup import list_json, list_text

    result = list_cgroups(
        proc=proc, on_progress=watch.on_progress, should_stop=watch.should_stop
    )
    watch.end_scan()
    if as_json:
        common.write_pieces([list_json(result)])
    else:
        common.write_pieces(list_text(result, terminal_width()))
    return not result.is_complete


def _show(
    path: str,
    directories: tuple[str, ...],
    top: int,
    watch: Watch,
    as_json: bool,
    proc: str,
) -> bool:
    from memlens.commands.common import terminal_width
    from memlens.physical.cgroup import read_cgroup
    from memlens.views.cgroup import render_json, render_text

    result = read_cgroup(
        path,
        directories=directories,
        proc=proc,
        on_progress=watch.on_progress,
        should_stop=watch.should_stop,
    )
    watch.end_scan()
    if as_json:
        common.write_pieces([render_json(result)])
    else:
        common.write_pieces(render_text(result, terminal_width(), top))
    return bool(not result.is_complete or result.missed or result.moved_pages)
