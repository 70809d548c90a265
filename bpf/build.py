#!/usr/bin/env python3
"""
Build the BPF programs that memlens ships: C source to a pair of blobs.

``clang`` compiles, ``bpftool gen skeleton -L`` makes a light skeleton: a loader
program with all that it needs as data.  The kernel runs the loader, which fits
the programs to the kernel's own structures and loads them; user space needs
neither libbpf nor a compiler.  The skeleton is a C header; its two byte strings
become ``NAME.data`` and ``NAME.insns`` in the package, and ``NAME.json`` says
what they were built from and with.

    bpf/build.py            write the blobs
    bpf/build.py --check    fail if the blobs are not what the source gives

The check needs the recorded versions of the tools; with others, or with none,
it compares the hash of the source alone, and says so.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "src" / "memlens" / "kernel" / "bpf_blobs"
PROGRAMS = ("cachewalk", "frameslots", "swapareas")
CLANG = "clang-14"
BPFTOOL = "bpftool"
FLAGS = ["-g", "-O2", "-target", "bpf", "-mcpu=v3"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the BPF programs of memlens.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    is_check = parser.parse_args().check
    tools = tool_versions()
    if is_check:
        return max(check(name, tools) for name in PROGRAMS)
    if tools is None:
        print(f"needs {CLANG}, {BPFTOOL} and libbpf-dev", file=sys.stderr)
        return 1
    OUTPUT.mkdir(exist_ok=True)
    for name in PROGRAMS:
        for path, content in build(name, tools).items():
            path.write_bytes(content)
            print(f"{path.relative_to(HERE.parent)}: {len(content)} bytes")
    return 0


def check(name: str, tools: dict[str, str] | None) -> int:
    """Return 1 if the committed blobs are not what the source gives."""
    recorded = json.loads((OUTPUT / f"{name}.json").read_text())
    if recorded["source_sha256"] != source_sha256(name):
        print(f"bpf: {name}: the source changed since the blobs were built", file=sys.stderr)
        return 1
    for part in ("data", "insns"):
        if recorded[f"{part}_sha256"] != sha256((OUTPUT / f"{name}.{part}").read_bytes()):
            print(f"bpf: {name}.{part} is not the recorded one", file=sys.stderr)
            return 1
    if tools != recorded["tools"]:
        wanted = ", ".join(recorded["tools"].values())
        print(f"bpf: {name}: the source's hash is right; to rebuild it takes {wanted}")
        return 0
    for path, content in build(name, tools).items():
        if path.read_bytes() != content:
            print(f"bpf: {path.name} is not what the source gives", file=sys.stderr)
            return 1
    print(f"bpf: {name}: rebuilt, the same")
    return 0


def tool_versions() -> dict[str, str] | None:
    """Return the first version line of each tool, None if one is missing."""
    try:
        return {
            "clang": _first_line([CLANG, "--version"]),
            "bpftool": _first_line([BPFTOOL, "version"]),
            "libbpf-dev": _first_line(["dpkg-query", "-W", "-f", "${Version}", "libbpf-dev"]),
        }
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def build(name: str, tools: dict[str, str]) -> dict[Path, bytes]:
    """Return the content of the three files that a program makes, by path."""
    skeleton = _skeleton(name)
    blobs = {part: _byte_string(skeleton, part) for part in ("data", "insns")}
    record = {
        "source_sha256": source_sha256(name),
        "tools": tools,
        "maps": _members(skeleton, "bpf_map_desc"),
        "programs": _members(skeleton, "bpf_prog_desc"),
        **{f"{part}_sha256": sha256(blob) for part, blob in blobs.items()},
    }
    text = json.dumps(record, indent=2) + "\n"
    return {
        **{OUTPUT / f"{name}.{part}": blob for part, blob in blobs.items()},
        OUTPUT / f"{name}.json": text.encode(),
    }


def source_sha256(name: str) -> str:
    """Return one hash over the C files that a program is made of."""
    return sha256(b"".join((HERE / part).read_bytes() for part in _sources(name)))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sources(name: str) -> tuple[str, str]:
    return f"{name}.bpf.c", "kernel_types.h"


def _first_line(command: list[str]) -> str:
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return output.splitlines()[0]


def _skeleton(name: str) -> str:
    """Return the C header that bpftool makes of ``NAME.bpf.c``."""
    include = subprocess.run(
        [CLANG, "-print-multiarch"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as directory:
        # The object's name goes into the blob, and relative paths keep this directory out.
        target = Path(directory) / f"{name}.bpf.o"
        paths = ["-idirafter", f"/usr/include/{include}", f"-fdebug-prefix-map={HERE}=."]
        subprocess.run(
            [CLANG, *FLAGS, *WARNINGS, *paths, "-c", f"{name}.bpf.c", "-o", str(target)],
            check=True,
            cwd=HERE,
        )
        return subprocess.run(
            [BPFTOOL, "gen", "skeleton", "-L", str(target)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def _byte_string(skeleton: str, part: str) -> bytes:
    """Return the bytes of ``opts.data`` or ``opts.insns``."""
    match = re.search(rf'opts\.{part} = \(void \*\)"\\\n(.*?)";', skeleton, re.DOTALL)
    size = re.search(rf"opts\.{part}_sz = (\d+)", skeleton)
    if match is None or size is None:
        raise SystemExit(f"no opts.{part} in the skeleton: another bpftool?")
    escapes = re.findall(r"\\(?:x([0-9a-f]{1,2})|0)", match[1])
    content = bytes(int(digits, 16) if digits else 0 for digits in escapes)
    if len(content) != int(size[1]):
        raise SystemExit(f"opts.{part}: {len(content)} bytes of {size[1]}")
    return content


def _members(skeleton: str, kind: str) -> list[str]:
    return re.findall(rf"struct {kind} (\w+);", skeleton)


if __name__ == "__main__":
    sys.exit(main())
