"""The benchmark leaves nothing behind and shows what it has, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One scenario that is whole, one that is ended halfway, and one that is never reached.
PROGRAM = """
import signal, sys
from pathlib import Path
from bench.harness.context import Context
from bench.harness.ending import end_by_signals
from bench.harness.lines import LineProcess
from bench.harness.report import write_page
from bench.harness.rows import Row, Section
from bench.run import run_all

def whole(ctx):
    yield Row("of the first", 1.5, "x", 2)

def halfway(ctx):
    with LineProcess(["sh", "-c", "sleep 999 & echo $!; wait"]) as child:
        try:
            yield Row("of the second", 2.5, "x")
            print("made", child.ready, flush=True)
            signal.pause()
        finally:
            signal.raise_signal(signal.SIGTERM)
    print("went on", flush=True)

end_by_signals()
loaded = [
    (Section("", "one"), whole), (Section("", "two"), halfway), (Section("", "three"), whole)
]
code = run_all(loaded, Context({}))
write_page(Path(sys.argv[1]), "A machine.", [section for section, _ in loaded])
sys.exit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
def test_ended_run_takes_away_what_it_made_and_writes_what_it_has(
    number: signal.Signals, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(page)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with child:
        if child.stdout is None:
            raise OSError("no pipe")
        lines = iter(child.stdout.readline, "")
        made = next(int(line.split()[1]) for line in lines if line.startswith("made "))
        child.send_signal(number)
        rest = list(lines)
    assert child.returncode == 128 + number
    assert "went on\n" not in rest
    assert not Path(f"/proc/{made}").exists()
    first, second, third = page.read_text().split("\n## ")[1:]
    assert "| of the first | 1.50x | ≤ 2.00x | yes |" in first
    assert "| of the second | 2.50x |" in second
    assert "the run was ended here" in second
    assert third == "Three\n\nNot measured: the run was ended before.\n"


def test_signal_waits_until_what_must_not_be_disturbed_is_done() -> None:
    program = """
import signal, subprocess, sys
from bench.harness.ending import end_by_signals, undisturbed
end_by_signals()
try:
    with undisturbed():
        signal.raise_signal(signal.SIGTERM)
        own = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('done')"
        subprocess.run([sys.executable, "-c", own], check=True)
finally:
    print("after", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "done\nafter\n"
    assert done.returncode == 128 + signal.SIGTERM
