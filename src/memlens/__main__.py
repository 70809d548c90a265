"""``python -m memlens`` and the command ``memlens``."""

import sys


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:] == ["--version"]:
        # Before anything is imported: scripts ask this often.
        print(f"memlens {sys.modules['memlens'].__version__}")
        return
    try:
        from memlens.commands import startup

        startup.begin()
        from memlens.commands.main import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


def run() -> None:
    """Run the command line, and end this process at once with its exit code."""
    try:
        main()
    except SystemExit as done:
        from memlens.commands.startup import leave

        leave(done.code)


if __name__ == "__main__":
    run()
