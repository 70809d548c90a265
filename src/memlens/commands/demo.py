"""``memlens demo``: memory of every kind, what pagemap says of it, and what is true."""

import click

from memlens.commands import common


@click.command(name="demo")
@common.json_option
@common.no_color_option
@click.option("--no-swap", is_flag=True, help="Use no swap, and make none.")
def command(as_json: bool, no_color: bool, no_swap: bool) -> None:
    """
    Build memory of every kind, and check what memlens says of it.

    A child process makes the memory; if there is no swap, root makes some for the time
    being: a zram device, or a swap file. Shown is what pagemap alone says of the pages
    beside what memlens says. Exits with 1 if memlens is wrong on any page.
    """
    from memlens.selftest.demo import run_demo
    from memlens.views import selftest as view

    result = run_demo(use_swap=not no_swap)
    if as_json:
        common.write_pieces((view.render_demo_json(result), "\n"))
    else:
        width = common.terminal_width()
        common.print_lines(view.render_demo(result, width, common.is_unicode()), no_color)
    if result.disagreeing_pages or result.leftovers:
        raise click.exceptions.Exit(common.EXIT_ERROR)
