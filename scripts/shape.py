"""
Print the shape of the package: how large it is, and how its modules hang together.

    python scripts/shape.py [DIRECTORY]

Imports inside functions count, those under TYPE_CHECKING do not.  ``errors``, ``units``,
``record`` and ``report`` are what everything speaks: an import of them is not counted.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, median

SOURCE = Path(__file__).parent.parent / "src" / "memlens"
SPOKEN = frozenset({"errors", "units", "record", "report"})
# What the package is to become, or stay.
LIMITS = {
    "modules": 155,
    "lines of code": 19_000,
    "import depth": 13,
    "imports a module": 4.5,
    "modules with one importer": 28,
    "import cycles": 0,
    "files of the largest package": 20,
}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Tree:
    """
    The modules of a package.

    :param source: its directory.
    """

    source: Path

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Return the file of every module by its full name."""
        return {self.name_of(path): path for path in sorted(self.source.rglob("*.py"))}

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Return the modules that hold code: an empty ``__init__`` is none."""
        return {name: path for name, path in self.paths.items() if path.read_text().strip()}

    def name_of(self, path: Path) -> str:
        parts = (self.source.name, *path.relative_to(self.source).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports_of(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield line and full name of every module that a file imports, wherever in it."""
        yield from self._imports_in(path, ast.walk(ast.parse(path.read_text())))

    def _imports_in(self, path: Path, nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._base_of(path, node)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield node.lineno, full if full in self.paths else base

    def _base_of(self, path: Path, node: ast.ImportFrom) -> str:
        base = node.module or ""
        if not node.level:
            return base
        package = self.name_of(path).split(".")
        package = package if path.name == "__init__.py" else package[:-1]
        return ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")

    @cached_property
    def graph(self) -> dict[str, frozenset[str]]:
        """Return what each module imports of this package when it runs."""
        found = {}
        for name, path in self.paths.items():
            nodes = _walk_running(ast.parse(path.read_text()))
            targets = {target for _, target in self._imports_in(path, nodes)}
            found[name] = frozenset(targets & self.paths.keys() - {name})
        return found

    def import_chain(self) -> list[str]:
        """
        Return the longest chain of imports, the module that nobody imports first.

        :raises ValueError: if there is a cycle.
        """
        longest: dict[str, list[str]] = {}

        def visit(name: str, trail: tuple[str, ...]) -> list[str]:
            if name in trail:
                raise ValueError("imports in a circle: " + " -> ".join((*trail, name)))
            if name not in longest:
                below = (visit(target, (*trail, name)) for target in sorted(self.graph[name]))
                longest[name] = [name, *max(below, key=len, default=[])]
            return longest[name]

        return max((visit(name, ()) for name in sorted(self.graph)), key=len)

    def imports_a_module(self) -> float:
        """Return how many modules of the package a module imports on average."""
        return mean(
            len([t for t in self.graph[name] if t.partition(".")[2] not in SPOKEN])
            for name in self.modules
        )

    def single_use(self) -> list[str]:
        """Return the modules that exactly one other imports."""
        users = {
            name: [user for user in self.graph if name in self.graph[user]]
            for name in self.modules
        }
        return [name for name, found in users.items() if len(found) == 1]

    def package_sizes(self) -> dict[str, int]:
        """Return the number of files in each package."""
        packages = {path.parent for path in self.paths.values()}
        return {package.name: len(list(package.glob("*.py"))) for package in packages}


def _walk_running(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module without those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _walk_running(node)


def code_lines(text: str) -> int:
    """Return the lines that hold code: no docstrings, comments or blanks."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def function_lengths(text: str) -> list[int]:
    """Return the lines in the body of each function, docstrings and blanks left out."""
    found = []
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                part = lines[body[0].lineno - 1 : node.end_lineno]
                found.append(sum(1 for line in part if line.strip()))
    return found


def measure(tree: Tree) -> dict[str, float]:
    """Return the figures, by what they are called in ``LIMITS``."""
    texts = [path.read_text() for path in tree.modules.values()]
    try:
        depth, cycles = len(tree.import_chain()), 0
    except ValueError:
        depth, cycles = 0, 1
    return {
        "modules": len(tree.modules),
        "lines of code": sum(map(code_lines, texts)),
        "import depth": depth,
        "imports a module": round(tree.imports_a_module(), 2),
        "modules with one importer": len(tree.single_use()),
        "import cycles": cycles,
        "files of the largest package": max(tree.package_sizes().values()),
        "lines of the largest file": max(len(text.splitlines()) for text in texts),
        "lines of a function (median)": median(
            length for text in texts for length in function_lengths(text)
        ),
    }


def main() -> None:
    tree = Tree(Path(sys.argv[1]).resolve() if sys.argv[1:] else SOURCE)
    print(f"{'':30} {'is':>8} {'limit':>8}")
    for name, value in measure(tree).items():
        limit = LIMITS.get(name)
        beyond = "  beyond" if limit is not None and value > limit else ""
        shown = "" if limit is None else f"{limit:,}"
        print(f"{name:30} {value:8,} {shown:>8}{beyond}".rstrip())


if __name__ == "__main__":
    main()
