"""``memlens demo``: memory of every kind, what pagemap says of it, and what is true."""

from typing import Any

import click

from memlens.commands import run


@click.command(name="demo")
@click.option("--no-swap", is_flag=True, help="Use no swap, and make none.")
@run.report_options
def command(request: run.Request, no_swap: bool) -> None:
    """
    Build memory of every kind, and check what memlens says of it.

    A child process makes the memory; if there is no swap, root makes some for the time
    being: a zram device, or a swap file. Shown is what pagemap alone says of the pages
    beside what memlens says. Exits with 1 if memlens is wrong on any page.
    """
    from memlens.selftest.records import DemoResult
    from memlens.views.demo import render

    def read(**scan: Any) -> DemoResult:
        from memlens.selftest.demo import run_demo

        return run_demo(use_swap=not no_swap, **scan)

    run.give(request, (DemoResult,), "building memory", read, render)
