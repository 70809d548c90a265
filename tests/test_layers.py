"""
The layers of the package, read from its imports.

    commands
    live
    views  (know records only)      selftest
    history
    ram | physical
    swap | sharing
    shm
    residency
    scan
    objects
    kernel | pages
    report, record, errors, units

Arrows run downwards only; packages on one line do not know each other.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import memlens

SOURCE = Path(__file__).parent.parent / "src" / "memlens"
# A file has a subject, and that much room for it.
LINES_AT_MOST = 500
# To be rebuilt: the one judge, and the map's view.
LONGER = {"residency/judge.py": 760}
FILES_AT_MOST = 20

# What is below everything that knows the kernel.
GROUND = {"report", "record", "errors", "units", "pages"}
BELOW = {
    "kernel": {"errors", "units"},
    "objects": {"kernel"} | GROUND,
    "scan": {"objects", "kernel"} | GROUND,
    "residency": {"scan", "objects", "kernel"} | GROUND,
    "shm": {"residency", "scan", "objects", "kernel"} | GROUND,
}
SUBJECTS = {"ram", "physical", "swap", "sharing", "shm", "residency"}
# What a layer may import besides itself.  A layer is a directory, or a module beside them.
MAY_IMPORT = {
    **BELOW,
    "pages": {"units"},
    "errors": set(),
    "units": set(),
    "record": {"errors", "units"},
    "report": {"record", "errors", "units"},
    "schema": {"report", "record"},
    "swap": {"shm"} | BELOW["shm"],
    "sharing": {"shm"} | BELOW["shm"],
    "ram": {"swap", "sharing", "shm"} | BELOW["shm"],
    "physical": {"swap", "sharing", "shm"} | BELOW["shm"],
    "history": SUBJECTS | BELOW["shm"],
    "selftest": {"history"} | SUBJECTS | BELOW["shm"],
    "views": GROUND,
    "live": {"views", "selftest", "history"} | SUBJECTS | BELOW["shm"],
    "commands": {"live", "views", "selftest", "history", "schema"}
    | SUBJECTS
    | {"scan"}
    | GROUND,
    "__init__": {"selftest", "history"} | SUBJECTS | {"scan"} | GROUND,
    "__main__": {"commands", "errors"},
}
# Views read what was found, wherever it was found: the records of every subject, nothing else.
RECORDS = {f"memlens.{subject}.records" for subject in SUBJECTS | {"selftest", "history"}}

# The libraries that the package depends on, by the places that may import them.
LIBRARIES = {
    "numpy": ("",),
    "click": ("commands/", "__main__.py"),
    "rich": ("commands/", "views/"),
}
# Makes the system calls and opens the kernel's files.
SYSTEM_CALLS = {"ctypes", "fcntl", "mmap"}
# The kernel's interfaces, what is behind memory, and memory that is made on purpose.
MAKE_SYSTEM_CALLS = {"kernel", "objects", "selftest"}


# What a Host and a Machine hold is handed down in them, never one by one.
HELD = {"proc", "sys", "page_size_bytes", "meter", "use_scan", "disabled", "follow"}
HELD |= {"should_stop", "on_progress", "check_stop", "budget_s"}
TAKE_THEM = {
    "Host": "holds them",
    "Machine": "holds them",
    "read_abilities": "is for doctor what probe_features is for all",
    "parse_swaps": "a parser",
    "_parse_area": "a parser",
    "ObjectUse.pages": "plain facts in bytes, counted in pages",
    "ProcessFacts.count_own": "plain facts in bytes, counted in pages",
    "OwnPages": "memory that is made, of the kernel's pages",
    "Features": "a record",
}
RECORD_FILES = ("records.py", "report.py")


def module_paths() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def module_name(path: Path) -> str:
    parts = ("memlens", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """Return ``kernel`` for ``memlens.kernel.maps`` and ``memlens`` for the root."""
    return module.partition(".")[2].partition(".")[0] or "memlens"


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield from _imports_from(path, node)


def _imports_from(path: Path, node: ast.ImportFrom) -> Iterator[tuple[int, str]]:
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        if path.name != "__init__.py":
            package = package[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, base]).rstrip(".")
    for alias in node.names:
        full = f"{base}.{alias.name}"
        yield node.lineno, full if full in MODULES else base


MODULES = {module_name(path) for path in module_paths()}


def own_layer(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_imports_follow_the_arrows(path: Path) -> None:
    layer = own_layer(path)
    allowed = MAY_IMPORT[layer] | {layer}
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.split(".")[0] == "memlens"
        and layer_of(name) not in allowed
        and not (layer == "views" and name in RECORDS)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_imports_name_modules_that_exist(path: Path) -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.split(".")[0] == "memlens" and name not in MODULES
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_libraries_stay_in_their_places(path: Path) -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in imports_of(path)
        if (root := name.split(".")[0]) not in sys.stdlib_module_names | {"memlens"}
        and not short(path).startswith(LIBRARIES.get(root, ()))
    ]
    assert not wrong, wrong


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert names == set(LIBRARIES)


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_few_layers_make_system_calls(path: Path) -> None:
    if own_layer(path) in MAKE_SYSTEM_CALLS:
        return
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.split(".")[0] in SYSTEM_CALLS
    ]
    assert not wrong, wrong


def test_no_import_cycles() -> None:
    graph = {
        module_name(path): {name for _, name in imports_of(path) if name in MODULES}
        for path in module_paths()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_modules_are_short(path: Path) -> None:
    most = LONGER.get(short(path), LINES_AT_MOST)
    assert len(path.read_text().splitlines()) <= most


def takers_of(tree: ast.Module) -> Iterator[tuple[str, int, set[str]]]:
    """Yield functions, and classes with fields, by name with the names that they take."""
    for node in ast.walk(tree):
        inside = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        if isinstance(node, ast.ClassDef):
            fields = [row.target for row in node.body if isinstance(row, ast.AnnAssign)]
            taken = {field.id for field in fields if isinstance(field, ast.Name)}
            yield node.name, node.lineno, taken
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                given = child.args
                every = given.posonlyargs + given.args + given.kwonlyargs
                name = f"{inside}{child.name}".removesuffix(".__init__")
                yield name, child.lineno, {one.arg for one in every}


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_what_a_machine_holds_is_handed_down_in_it(path: Path) -> None:
    """But for the public functions, which have keywords, and those of ``TAKE_THEM``."""
    if own_layer(path) in ("commands", "views"):
        return
    held = HELD - ({"page_size_bytes"} if path.name in RECORD_FILES else set())
    wrong = [
        f"{short(path)}:{line} {name} takes {', '.join(sorted(taken & held))}"
        for name, line, taken in takers_of(ast.parse(path.read_text()))
        if taken & held and name not in {*TAKE_THEM, *memlens.__all__}
    ]
    assert not wrong, wrong


def test_what_may_take_them_is_there() -> None:
    takers = {
        name
        for path in module_paths()
        for name, _, taken in takers_of(ast.parse(path.read_text()))
        if taken & HELD
    }
    assert set(TAKE_THEM) <= takers, set(TAKE_THEM) - takers


def test_packages_are_small() -> None:
    for package in {path.parent for path in module_paths()}:
        assert len(list(package.glob("*.py"))) <= FILES_AT_MOST, short(package)


def test_only_the_root_re_exports() -> None:
    """A package's __init__ that holds code invites imports that hide where things are."""
    for path in SOURCE.rglob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), short(path)


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_no_assert_in_the_package(path: Path) -> None:
    """`python -O` removes them."""
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_every_module_and_public_name_is_documented(path: Path) -> None:
    if not path.read_text().strip():
        return
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    missing = [
        f"{short(path)}:{node.lineno} {node.name}"
        for node in tree.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    if ast.get_docstring(tree) is None:
        missing.append(f"{short(path)}: the module")
    assert not missing, missing


def test_two_levels_deep() -> None:
    assert all(len(path.relative_to(SOURCE).parts) <= 2 for path in module_paths())
