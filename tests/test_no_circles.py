"""No two modules need each other: the strongly connected components of the import graph are single modules."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("storage_schemas", "pipelines", "uwm", "flows")


def product_modules() -> dict[str, Path]:
    """Dotted name -> file of every product module; a package is its `__init__.py`."""
    paths = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path, names: frozenset[str]) -> Iterator[str]:
    """Every product module that a file imports, wherever in it: at the top, in a function, or for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                if full in names:
                    yield full
                elif module in names:
                    yield module


def graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    names = frozenset(modules)
    return {name: set(imported(path, names)) - {name} for name, path in modules.items()}


def test_no_circle_of_imports() -> None:
    try:
        TopologicalSorter(graph(product_modules())).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_a_circle_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from b import g\n")
    (tmp_path / "b.py").write_text("from a import f\n")
    found = graph({"a": tmp_path / "a.py", "b": tmp_path / "b.py"})
    with pytest.raises(CycleError):
        TopologicalSorter(found).prepare()
