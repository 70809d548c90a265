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
from scripts.shape import LIMITS, SOURCE, Tree, code_lines

TREE = Tree(SOURCE)
# A file has a subject, and that much room for it.
LINES_AT_MOST = 500
# On the way to what scripts/shape.py wants: lowered with every step, never raised.
DEPTH_AT_MOST = 13
IMPORTS_AT_MOST = 5.0

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
    # Commands are clients of the public names, which the root loads when they are used.
    "commands": {"memlens", "live", "views", "selftest", "history", "schema"}
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


# Page tables are read by one class; what is below it, or proves it, opens them itself.
READS_PAGE_TABLES = "scan/pagetable.py"
READ_PAGEMAP = {"kernel", "objects", "selftest"}


# What a Host and a Machine hold is handed down in them, never one by one.
HELD = {"proc", "sys", "page_size_bytes", "meter", "use_scan", "disabled", "follow"}
HELD |= {"should_stop", "on_progress", "check_stop", "budget_s"}
TAKE_THEM = {
    "Host": "holds them",
    "Machine": "holds them",
    "run_demo": "is called by its command as the public functions are",
    "parse_swaps": "a parser",
    "_parse_area": "a parser",
    "ObjectUse.pages": "plain facts in bytes, counted in pages",
    "ProcessFacts.count_entries": "plain facts in bytes, counted in pages",
    "Reader": "a record",
}
RECORD_FILES = ("records.py", "report.py")


def module_paths() -> list[Path]:
    return list(TREE.paths.values())


def short(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def layer_of(module: str) -> str:
    """Return ``kernel`` for ``memlens.kernel.maps`` and ``memlens`` for the root."""
    return module.partition(".")[2].partition(".")[0] or "memlens"


def own_layer(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_imports_follow_the_arrows(path: Path) -> None:
    layer = own_layer(path)
    allowed = MAY_IMPORT[layer] | {layer}
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in TREE.imports_of(path)
        if name.split(".")[0] == "memlens"
        and layer_of(name) not in allowed
        and not (layer == "views" and name in RECORDS)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_imports_name_modules_that_exist(path: Path) -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in TREE.imports_of(path)
        if name.split(".")[0] == "memlens" and name not in TREE.paths
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_libraries_stay_in_their_places(path: Path) -> None:
    wrong = [
        f"{short(path)}:{line} imports {name}"
        for line, name in TREE.imports_of(path)
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
        for line, name in TREE.imports_of(path)
        if name.split(".")[0] in SYSTEM_CALLS
    ]
    assert not wrong, wrong


def test_chains_of_imports_are_short_and_never_circles() -> None:
    chain = TREE.import_chain()
    assert len(chain) <= DEPTH_AT_MOST, chain


def test_modules_import_few_others() -> None:
    assert TREE.imports_a_module() <= IMPORTS_AT_MOST


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def late():\n    from . import two\n")
    (tmp_path / "two.py").write_text(f"import {tmp_path.name}.one\n")
    with pytest.raises(ValueError, match="circle"):
        Tree(tmp_path).import_chain()
    (tmp_path / "two.py").write_text(
        f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {tmp_path.name}.one\n"
    )
    assert len(Tree(tmp_path).import_chain()) == 2
    assert Tree(tmp_path).single_use() == [f"{tmp_path.name}.two"]


def test_lines_of_code_are_what_is_neither_said_nor_blank() -> None:
    assert code_lines('"""Doc."""\n\n# why\nX = """a\nb"""\n\ndef f():\n    """Doc."""\n') == 3


@pytest.mark.parametrize("path", module_paths(), ids=short)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_AT_MOST


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
    most = LIMITS["files of the largest package"]
    assert {n: count for n, count in TREE.package_sizes().items() if count > most} == {}


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


def test_one_reader_reads_page_tables() -> None:
    for path in module_paths():
        imports = re.search(r"kernel\.pagemap import [^)]*?\bPagemap\b", path.read_text())
        is_below = path.relative_to(SOURCE).parts[0] in READ_PAGEMAP
        assert not imports or is_below or short(path) == READS_PAGE_TABLES, path
