"""smem and ps_mem, which tell the memory of all processes: got when first compared with."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.harness.context import Context, find_memlens
from bench.harness.rows import Row
from bench.harness.spent import of_command

BUILD = Path(__file__).parents[1] / "build"
Peer = list[str] | str


def beside(ctx: Context, ours: str, name: str, limit: float | None = None) -> Row:
    """Return our command's time in parts of a peer's, both as whole commands."""
    peer = PEERS[name]()
    figure = f"memlens {ours} / {name}"
    if isinstance(peer, str):
        return Row(figure, None, "x", limit, peer)
    pairs = ctx.compare(of_command(find_memlens(ours)), of_command(peer))
    return Row(figure, pairs.ratio, "x", limit, pairs.note)


def find_smem() -> Peer:
    """Return smem of Debian's package, unpacked: it is one script."""
    script = BUILD / "smem" / "usr" / "bin" / "smem"
    if not script.exists():
        download = BUILD / "smem"
        unpack = "apt-get download smem && dpkg-deb -x smem_*.deb . && rm smem_*.deb"
        failure = _try(["sh", "-c", unpack], download)
        if failure:
            return failure
    return [sys.executable, str(script)]


def find_ps_mem() -> Peer:
    """Return ps_mem from the package index."""
    script = BUILD / "ps_mem" / "ps_mem.py"
    if not script.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        failure = _try([*install, ".", "ps_mem"], BUILD / "ps_mem")
        if failure:
            return failure
    return [sys.executable, str(script)]


def _try(command: list[str], directory: Path) -> str:
    """Run a command in a new directory; return why it failed, "" if it did not."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


PEERS: dict[str, Callable[[], Peer]] = {"smem": find_smem, "ps_mem": find_ps_mem}
