"""
Build the C programs: ours, and the kernel's own page-types.

page-types and thpmaps come from Debian's package of kernel sources; only the few files they
need are kept.  They are peers to compare with: without them, rows say why they are empty.

    python -m bench.harness.build    get the kernel's own before the tests that run them
"""

import shutil
import subprocess
import sys
from pathlib import Path

KERNEL_SOURCE = "linux-source-6.12"
KERNEL_FILES = (
    "*/tools/mm/page-types.c",
    "*/tools/mm/thpmaps",
    "*/tools/include",
    "*/tools/lib/*.c",
    "*/tools/lib/api",
    "*/include/uapi/linux/magic.h",
    "*/include/uapi/linux/kernel-page-flags.h",
)
PAGE_TYPES_SOURCES = (
    "tools/mm/page-types.c",
    "tools/lib/api/fs/fs.c",
    "tools/lib/api/debug.c",
    "tools/lib/str_error_r.c",
)
PAGE_TYPES_INCLUDES = ("tools/lib", "tools/lib/api", "tools/include")


def build_program(source: Path, build: Path) -> Path:
    """Return the program built from one C file, building it if the file is newer."""
    program = build / source.stem
    build.mkdir(parents=True, exist_ok=True)
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        warnings = ["-Wall", "-Wextra"]
        _run(["cc", "-O2", *warnings, "-pthread", "-o", str(program), str(source)])
    return program


def build_page_types(build: Path) -> Path | str:
    """Return the program, or one line that says why it cannot be had."""
    program = build / "page-types"
    if program.exists():
        return program
    tree = build / "linux"
    try:
        _extract(_find_archive(build), tree)
        includes = [f"-I{tree / name}" for name in PAGE_TYPES_INCLUDES]
        sources = [str(tree / name) for name in PAGE_TYPES_SOURCES]
        # Static: it would map pages of libraries that the process it looks at maps as well,
        # which then are not mapped once any more.
        options = ["-O2", "-w", "-static", "-D_GNU_SOURCE"]
        _run(["cc", *options, *includes, "-o", str(program), *sources])
    except (OSError, subprocess.CalledProcessError) as error:
        return f"page-types could not be built: {_first_line(error)}"
    return program


def find_thpmaps(build: Path) -> Path | str:
    """Return the kernel's thpmaps, a script, or one line that says why it is missing."""
    script = build / "linux" / "tools" / "mm" / "thpmaps"
    try:
        if not script.exists():
            _extract(_find_archive(build), build / "linux")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"thpmaps cannot be had: {_first_line(error)}"
    return script


def _find_archive(build: Path) -> list[str]:
    """Return the command that writes the sources, as .tar.xz, to stdout."""
    installed = Path("/usr/src") / f"{KERNEL_SOURCE}.tar.xz"
    if installed.exists():
        return ["cat", str(installed)]
    download = build / "download"
    download.mkdir(parents=True, exist_ok=True)
    if not list(download.glob("*.deb")):
        _download(download)
    package = next(download.glob("*.deb"), None)
    if package is None:
        raise FileNotFoundError(f"no package {KERNEL_SOURCE}")
    inner = f"./usr/src/{KERNEL_SOURCE}.tar.xz"
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar --extract --to-stdout "$2"'
    return ["sh", "-c", unpack, "sh", str(package), inner]


def _download(directory: Path) -> None:
    command = ["apt-get", "-o", "Acquire::Retries=3", "download", KERNEL_SOURCE]
    try:
        _run(command, cwd=directory)
    except subprocess.CalledProcessError:
        # No lists of packages, or so old that the version they name is gone.
        _run(["apt-get", "-q", "update"])
        _run(command, cwd=directory)


def _extract(archive: list[str], tree: Path) -> None:
    tree.mkdir(parents=True, exist_ok=True)
    untar = ["tar", "--extract", "--xz", "--strip-components=1", f"--directory={tree}"]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as source:
        _run([*untar, "--wildcards", *KERNEL_FILES], stdin=source.stdout)
    shutil.rmtree(tree.parent / "download", ignore_errors=True)


def _run(command: list[str], **options: object) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, **options)


def main() -> None:
    """Get the kernel's own programs; what cannot be had is said."""
    build = Path(__file__).parents[1] / "build"
    for found in (build_page_types(build), find_thpmaps(build)):
        print(f"bench: {found}", file=sys.stderr)


def _first_line(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        return f"{error.cmd[0]}: {str(error.stderr).strip().splitlines()[-1]}"
    return str(error)


if __name__ == "__main__":
    main()
