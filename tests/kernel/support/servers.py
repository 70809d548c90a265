"""Real programs to look at: PostgreSQL and Redis, ours alone, in a memory cgroup."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.kernel.support.cgroups import Cgroup
from tests.kernel.support.machine import Missing, wait_until


@dataclass(frozen=True)
class Server:
    """A running server: its first process, and the port it serves."""

    process: "subprocess.Popen[bytes]"
    port: int = 0

    def pids(self) -> list[int]:
        """Return the server's processes, the first one first."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [self.process.pid, *sorted(child.pid for child in children)]


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(
    command: Sequence[str], cgroup: Cgroup, user: str, directory: Path, stop: signal.Signals
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server that is charged to the cgroup from its start, as ``user``."""
    enter = f"echo $$ > {cgroup.path}/cgroup.procs; exec setpriv --reuid={user} "
    enter += f'--regid="$(id -g {user})" --init-groups -- "$@"'
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", enter, "sh", *command], stdout=log, stderr=log, cwd=directory
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.send_signal(stop)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_port(port: int, directory: Path) -> None:
    def is_open() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(is_open, "the server listens", deadline_s=60)
    except AssertionError:
        raise AssertionError((directory / "log").read_text(errors="replace")) from None


@contextmanager
def _owned_directory(user: str) -> Iterator[Path]:
    """Make a directory that this user can reach, which pytest's directories are not."""
    directory = Path(tempfile.mkdtemp(prefix="memlens-test-"))
    try:
        shutil.chown(directory, user)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def postgresql(cgroup: Cgroup) -> Iterator[Server]:
    """Start a PostgreSQL with 32 MiB of shared buffers; it refuses to run as root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found or "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        raise Missing("PostgreSQL is not installed")
    programs = found[-1].parent
    with _owned_directory("postgres") as directory:
        data = directory / "data"
        subprocess.run(
            [programs / "initdb", "--no-sync", "--auth=trust", "-D", data],
            check=True,
            capture_output=True,
            user="postgres",
            group="postgres",
            cwd=directory,
        )
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": directory,
            "shared_buffers": "32MB",
            "huge_pages": "off",
            "fsync": "off",
            "autovacuum": "off",
        }
        options = [f"-c{name}={value}" for name, value in settings.items()]
        command = [str(programs / "postgres"), "-D", str(data), *options]
        with _running(command, cgroup, "postgres", directory, signal.SIGINT) as process:
            _wait_for_port(port, directory)
            yield Server(process, port)


def ask_postgresql(server: Server, *statements: str) -> str:
    """Run SQL in a session that ends, and return what it prints."""
    commands = [part for statement in statements for part in ("-c", statement)]
    return subprocess.run(
        ["psql", "-qAt", "-h127.0.0.1", f"-p{server.port}", "-Upostgres", *commands],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
    ).stdout


@contextmanager
def redis(cgroup: Cgroup) -> Iterator[Server]:
    """Start a Redis that saves nothing."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("Redis is not installed")
    with _owned_directory("nobody") as directory:
        port = free_port()
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
        with _running(command, cgroup, "nobody", directory, signal.SIGTERM) as process:
            _wait_for_port(port, directory)
            yield Server(process, port)


def ask_redis(server: Server, *commands: str) -> None:
    """Send commands to a Redis and wait for the answer to the last."""
    done = "memlens-test-done"
    lines = "".join(f"{command}\r\n" for command in (*commands, f"ECHO {done}"))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        file = connection.makefile("rb")
        connection.sendall(lines.encode())
        while done.encode() not in file.readline():
            pass


@contextmanager
def stopped(server: Server) -> Iterator[list[int]]:
    """
    Stop a server, so that its memory stands still, and let it go on.

    Yield the PIDs that stand: a session that was ending has become a zombie meanwhile.
    """

    def status(pid: int) -> str:
        return psutil.Process(pid).status()

    os.kill(server.process.pid, signal.SIGSTOP)  # first: it starts no others now
    try:
        wait_until(lambda: status(server.process.pid) == psutil.STATUS_STOPPED, "stopped")
        pids = server.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        still = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        wait_until(lambda: all(status(pid) in still for pid in pids), "all stopped")
        yield [pid for pid in pids if status(pid) == psutil.STATUS_STOPPED]
    finally:
        for pid in reversed(server.pids()):  # the first one last: it reaps
            os.kill(pid, signal.SIGCONT)
