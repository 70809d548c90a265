"""``memlens page PID ADDRESS``: one page, step by step."""

from typing import Any

import click

import memlens
from memlens.commands import common, run


@click.command(name="page")
@common.pid_argument
@common.address_argument
@run.report_options
def command(request: run.Request, pid: int | None, address: int | None) -> None:
    """
    Explain where the page at ADDRESS of the process PID is, and how that is known.

    Step by step: which file or call was asked, what it answered, and what follows from
    it; then the verdict, the object that backs the page, and who else maps it. ADDRESS is
    hexadecimal, as /proc/PID/maps prints it.
    """
    run.require(request, pid, "PID")
    run.require(request, address, "ADDRESS")
    from memlens.views.page import render

    def read(**scan: Any) -> memlens.PageExplanation:
        return memlens.explain_page(pid or 0, address or 0, **scan)

    run.give(request, (memlens.PageExplanation,), "looking at a page", read, render)
