"""``memlens doctor``: what this kernel and this user can see."""

from typing import Any

import click

import memlens
from memlens.commands import run


@click.command(name="doctor")
@run.report_options
def command(request: run.Request) -> None:
    """
    Say what this kernel and this user can see.

    Each interface is proven by a round trip on memory of its own: a call that succeeds
    may still say nothing. For what is missing: why, and the least privilege or kernel
    that would give it. Ends with what `memlens map` can say, and what it leaves open.
    """
    from memlens.views.doctor import render

    def read(**scan: Any) -> memlens.Features:
        return memlens.probe_features(**scan)

    run.give(request, (memlens.Features,), "asking the kernel", read, render)
