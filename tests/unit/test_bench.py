"""The benchmark leaves nothing behind, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal
from bench.run import take_away_and_end
signal.signal(signal.SIGTERM, take_away_and_end)
try:
    print("made", flush=True)
    signal.pause()
finally:
    signal.raise_signal(signal.SIGTERM)
    print("taken away", flush=True)
"""


def test_sigterm_takes_away_what_was_made() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with child:
        if child.stdout is None:
            raise OSError("no pipe")
        assert child.stdout.readline() == "made\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == "taken away\n"
    assert child.returncode == 128 + signal.SIGTERM
