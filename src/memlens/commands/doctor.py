"""``memlens doctor``: what this kernel and this user can see."""

import click

from memlens.commands import common


@click.command(name="doctor")
@common.json_option
@common.no_color_option
@common.proc_option
@click.option("--strict", is_flag=True, help="Exit with 3 if anything is missing.")
def command(as_json: bool, no_color: bool, proc: str, strict: bool) -> None:
    """
    Say what this kernel and this user can see.

    Each interface is proven by a round trip on memory of its own: a call that succeeds
    may still say nothing. For what is missing: why, and the least privilege or kernel
    that would give it. Ends with what `memlens map` can say, and what it leaves open.
    """
    from memlens.selftest.doctor import read_abilities
    from memlens.views import selftest as view

    abilities = read_abilities(proc)
    if as_json:
        common.write_pieces((view.render_doctor_json(abilities), "\n"))
    else:
        common.print_lines(view.render_doctor(abilities, common.terminal_width()), no_color)
    common.strict_exit(strict, not abilities.is_complete)
