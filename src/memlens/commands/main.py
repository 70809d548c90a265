"""The command ``memlens``: a group that loads a subcommand when it is asked for."""

import sys
from importlib import import_module
from typing import Any

import click

from memlens.commands import common, startup
from memlens.errors import MemlensError, Unsupported

# One row for a subcommand: the name of its module here, and its line in the help.
COMMANDS = {
    "map": "Show where every page of a process is.",
    "page": "Explain one page, step by step.",
    "doctor": "Say what this kernel and this user can see.",
    "files": "Show what of files is in the page cache.",
    "sharing": "Show what processes share, and what was copied since a fork.",
    "cgroup": "Show what pages a memory cgroup is charged, and whose they are.",
    "swap": "Show where all swap of the machine is: a ledger that closes.",
    "shm": "List all shared memory, or show one object page by page.",
    "ps": "List what processes use, shared pages told apart.",
    "demo": "Build memory of every kind, and check the verdicts.",
    "flags": "Count pages by their kernel flags.",
    "huge": "Show huge pages of every kind, and what KSM merged.",
}


class LazyGroup(click.Group):
    """A group whose help lists its commands without importing them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the ``command`` of the module of that name."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"memlens.commands.{cmd_name}").command
        return found

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, _ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; on another system say so before anything is imported."""
        if not sys.platform.startswith("linux"):
            raise Unsupported(f"needs Linux; this is {sys.platform}")
        found = super().resolve_command(_ctx, args)
        startup.end()
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and return its exit code, before click answers its faults."""
        call = super().invoke
        return common.exit_code_of(lambda: call(ctx))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run and exit; every fault is one line and an exit code."""
        extra |= {"standalone_mode": False, "prog_name": "memlens"}
        call = super().main

        def run() -> Any:
            _check_output()
            return call(*args, **extra)

        sys.exit(common.exit_code_of(run))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="memlens", message="%(prog)s %(version)s")
def cli() -> None:
    """
    Where every page of a Linux process really is.

    Exit codes: 0 done; 1 error; 2 wrong usage; 3 something is unknown (with --strict);
    130 Ctrl-C; 141 whoever read the output is gone.
    """


def _check_output() -> None:
    """Make printing safe whatever standard output is."""
    if sys.stdout is None:
        raise MemlensError("standard output is closed")
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A terminal that is not UTF-8 shows an escape instead of a traceback.
        reconfigure(errors="backslashreplace")
