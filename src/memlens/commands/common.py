"""
What every command shares: options, the console, and how faults become exit codes.

A command raises ``MemlensError`` (exit 1) or ``click.UsageError`` (exit 2) and prints
with ``console()`` or ``write_pieces()``; the group turns everything else into an exit
code.  No command catches what it cannot answer.
"""

import os
import sys
from collections.abc import Callable, Iterable
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from memlens.errors import AccessDenied, MemlensError
from memlens.units import escape_text, parse_address, parse_range

if TYPE_CHECKING:
    from rich.console import Console

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE: what a C program gives when its reader is gone

# No process has more digits than that on any kernel; int() is slow on endless ones.
_PID_DIGITS = 18


def converted(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """
    Return a click callback for a parser that raises ValueError.

    Several values become a tuple with each result once; None stays None.
    """

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(dict.fromkeys(map(parse, value)))
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return convert


def parse_pid(text: str) -> int:
    """
    Return a PID; /proc says whether there is such a process.

    :raises ValueError: if it is no number that one may have.
    """
    is_number = text.isascii() and text.isdigit() and len(text) <= _PID_DIGITS
    if not is_number or int(text) == 0:
        raise ValueError(f"not a PID: {text!r}")
    return int(text)


pid_argument = click.argument("pid", required=False, callback=converted(parse_pid))
pids_argument = click.argument(
    "pids", metavar="[PID]...", nargs=-1, callback=converted(parse_pid)
)
address_argument = click.argument("address", required=False, callback=converted(parse_address))
range_option = click.option(
    "--range",
    "addresses",
    metavar="START-STOP",
    callback=converted(parse_range),
    help="Only these addresses (hexadecimal, half open, rounded to pages).",
)


def is_colored(color: str = "auto") -> bool:
    """
    Return whether to print colours.

    :param color: ``always``, ``never``, or ``auto``: as NO_COLOR and CLICOLOR_FORCE say, else
        on a terminal that has them.
    """
    if color != "auto":
        return color == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def console() -> "Console":
    """
    Return a rich console on standard output that prints text as it is, in colour.

    Markup, emoji codes and highlighting are off: what is printed comes from other
    processes.  Text from outside still has to go through ``escape_text``.
    """
    from rich.console import Console

    class PipeConsole(Console):
        """A console that lets a closed pipe be a fault like any other."""

        def on_broken_pipe(self) -> None:
            """Pass the error on: rich itself would end the program with 1."""
            raise  # rich calls this while it handles the error

    return PipeConsole(
        # Colours that were asked for do not ask whether there is a terminal.
        force_terminal=True,
        color_system="auto" if sys.stdout.isatty() else "standard",
        highlight=False,
        markup=False,
        emoji=False,
    )


def write_pieces(pieces: Iterable[str]) -> None:
    """Write text to standard output piece by piece, so that none of it piles up."""
    for piece in pieces:
        sys.stdout.write(piece)


def write_csv(pieces: Iterable[str]) -> None:
    """
    Write CSV to standard output.

    Names are raw for programs; on a terminal, where one could move the cursor, they are not.
    """
    if not sys.stdout.isatty():
        write_pieces(pieces)
        return
    for piece in pieces:
        write_pieces("\n".join(map(escape_text, piece.split("\n"))))


def exit_code_of(call: Callable[[], Any]) -> int:
    """
    Call, print what went wrong as one line, and return the exit code.

    :param call: something that runs a click command without its standalone mode.
    """
    try:
        code = _code_of(call)
        _flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return EXIT_CLOSED_PIPE
    except OSError as error:
        _drop_output()
        complain(f"{error.strerror or error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        _drop_output()
        return EXIT_INTERRUPTED


def complain(message: str) -> None:
    """Print one line on standard error; whoever closed it does not want it."""
    if sys.stderr is None:
        return  # print() would take standard output
    try:
        print(f"memlens: {escape_text(message)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def _code_of(call: Callable[[], Any]) -> int:
    try:
        code = call()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        complain(_usage_line(error))
        return EXIT_USAGE
    except MemlensError as error:
        complain(_error_line(error))
        return EXIT_ERROR
    except ValueError as error:
        # What the user's environment says is usage; any other ValueError is a bug.
        if not str(error).startswith("MEMLENS_"):
            raise
        complain(str(error))
        return EXIT_USAGE
    return code if isinstance(code, int) else EXIT_OK


def _error_line(error: MemlensError) -> str:
    if not isinstance(error, AccessDenied):
        return str(error)
    # Imported here: most commands are refused nothing.
    from memlens.scan.machine import refusal_line

    return refusal_line(error)


def _usage_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message} (see {context.command_path} --help)" if context else message


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_output() -> None:
    """Let what is still buffered go nowhere: Python flushes again when it exits."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass


def terminal_width() -> int:
    """Return the cells in a line; 80 where there is no terminal and COLUMNS is not set."""
    return get_terminal_size().columns


def is_unicode() -> bool:
    """Return whether characters beyond ASCII can be printed."""
    return (sys.stdout.encoding or "").lower().startswith("utf")
