"""``memlens demo``: memory of every kind, what pagemap says of it, and what is true."""

import click

from memlens.commands import common, lines


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
    from memlens.account.demo import run_demo
    from memlens.views import demo as view

    result = run_demo(use_swap=not no_swap)
    if as_json:
        common.write_pieces((view.render_json(result), "\n"))
    else:
        width = lines.terminal_width()
        lines.print_lines(view.render_text(result, width, lines.is_unicode()), no_color)
    if result.disagreeing_pages or result.leftovers:
        raise click.exceptions.Exit(common.EXIT_ERROR)
