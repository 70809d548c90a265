"""The public names: all there, each from its own module, and none loaded before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memlens
from memlens import errors


@pytest.mark.parametrize("name", memlens.__all__)
def test_name_loads_and_is_documented(name: str) -> None:
    found = getattr(memlens, name)
    assert found.__name__ == name
    assert found.__doc__
    assert name in dir(memlens)


def test_type_checkers_see_what_is_there() -> None:
    tree = ast.parse(Path(memlens.__file__).read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.col_offset
        for alias in node.names
        if alias.asname == alias.name
    }
    homes = {name: f"memlens.{home}" for name, home in memlens._HOME_OF.items()}
    assert seen == homes


def test_every_error_is_public() -> None:
    tree = {name for name, item in vars(errors).items() if isinstance(item, type)}
    assert tree <= set(memlens.__all__)
    assert all(issubclass(getattr(errors, name), errors.MemlensError) for name in tree)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        memlens.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "code",
    ["import memlens", "import sys; sys.argv[1:] = ['--version']; import memlens.__main__"],
    ids=["import", "program"],
)
def test_nothing_heavy_is_loaded_early(code: str) -> None:
    heavy = "{'numpy', 'rich', 'psutil'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


def test_version_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "memlens", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert memlens.__version__ in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"numpy", "rich", "psutil", "memlens.residency.capture"}


def test_the_package_alone_loads_nothing() -> None:
    source = str(Path(memlens.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); import memlens; print(*sys.modules)"
    done = subprocess.run(
        # Without site, whose .pth files may load anything.
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"typing", "importlib", "re"} & set(done.stdout.split())
