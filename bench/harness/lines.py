"""Child processes that answer each line on stdin with one line of JSON."""

import ctypes
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

ANSWER_WITHIN_S = 300
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A program of the benchmark failed, or gave a wrong answer."""


class LineProcess:
    """
    A child process, from its first line until the end of the ``with`` block.

    :param command: program and arguments.
    :raises BenchError: if it ends, or does not answer in time.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        # In a session of its own: Ctrl-C is for us alone, who then end it and its children.
        self._child = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        try:
            self.ready = self._read()
        except BaseException:
            self._end(is_urgent=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(is_urgent=kind is not None)

    def _end(self, is_urgent: bool) -> None:
        if is_urgent:
            self._kill_all()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _kill_all(self) -> None:
        """Kill it and its children, and wait for all of them."""
        # Its children come to us once it has ended, so that we can wait for them.
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self._child.pid, 0)

    def ask(self, command: str = "run") -> dict[str, Any]:
        """Send one line and return the answer."""
        if self._child.stdin is None:
            raise BenchError(f"{self.command[0]}: no stdin")
        try:
            self._child.stdin.write(f"{command}\n".encode())
        except BrokenPipeError as error:
            raise BenchError(f"{' '.join(self.command)}: ended") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        stdout = self._child.stdout
        if stdout is None or not select.select([stdout], [], [], ANSWER_WITHIN_S)[0]:
            self._child.kill()
            raise BenchError(f"{' '.join(self.command)}: no answer in {ANSWER_WITHIN_S} s")
        line = stdout.readline()
        if not line:
            raise BenchError(f"{' '.join(self.command)}: ended, exit code {self._child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
