"""``memlens files``: what of files is in the page cache."""

from typing import Any

import click

import memlens
from memlens.commands import common, run

_TOP = 20


@click.command("files")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--pid",
    metavar="PID",
    callback=common.converted(common.parse_pid),
    help="Files of a process.",
)
@click.option("--cached", is_flag=True, help="Files of all processes, beside the whole cache.")
@click.option("-x", "--one-file-system", is_flag=True, help="Enter no other file system.")
@run.report_options
def command(
    request: run.Request,
    paths: tuple[str, ...],
    pid: int | None,
    cached: bool,
    one_file_system: bool,
) -> None:
    """
    Show what of files is in the page cache, mapped, dirty and evicted, and where in them.

    Directories are walked; links in them are not followed, and file systems that may not
    answer are not entered. With --cached: which files hold the page cache of the machine,
    those that processes map or have open and those below PATH, and what belongs to none.
    """
    if pid is not None and cached:
        raise click.UsageError("--pid and --cached exclude each other")
    run.require(
        request, paths or pid or cached or None, "files, directories, --pid or --cached"
    )
    from memlens.views.files import render

    failed: list[memlens.FileCache] = []

    def read(**scan: Any) -> memlens.FileReport:
        report = memlens.read_files(
            paths,
            pid=pid,
            is_machine=cached,
            one_file_system=one_file_system,
            strips=request.top or max(_TOP, len(paths)),
            sort=request.sort if request.table in (None, "files") else (),
            **scan,
        )
        is_closed = report.files.column("kind") == ""
        failed.extend(file for file in report.files[is_closed] if file.path in paths)
        return report

    run.give(request, (memlens.FileReport,), "reading files", read, render)
    # What the user named and could not be looked at.
    for file in failed:
        common.complain(f"{file.reason} ({file.path})")
    if failed:
        raise click.exceptions.Exit(common.EXIT_ERROR)
