"""``memlens page PID ADDRESS``: one page, step by step."""

import click

from memlens.commands import common


@click.command(name="page")
@common.pid_argument
@common.address_argument
@common.json_option
@common.no_color_option
@common.proc_option
def command(pid: int, address: int, as_json: bool, no_color: bool, proc: str) -> None:
    """
    Explain where the page at ADDRESS of the process PID is, and how that is known.

    Step by step: which file or call was asked, what it answered, and what follows from
    it; then the verdict, the object that backs the page, and who else maps it. ADDRESS is
    hexadecimal, as /proc/PID/maps prints it.
    """
    from memlens.residency.steps import explain_page
    from memlens.views import page as view

    found = explain_page(pid, address, proc=proc)
    if as_json:
        common.write_pieces((view.render_json(found), "\n"))
        return
    width = common.terminal_width()
    common.print_lines(view.render_text(found, width, common.is_unicode()), no_color)
