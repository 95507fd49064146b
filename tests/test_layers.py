"""The house's rules about who may import whom, read from the code itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("storage_schemas", "pipelines", "uwm", "flows")
MAY_IMPORT = {
    "storage_schemas": {"storage_schemas"},
    "pipelines": {"pipelines", "storage_schemas"},
    "uwm": {"uwm", "storage_schemas"},
    "flows": {"flows", "pipelines", "uwm", "storage_schemas"},
}
ONLY_IN = {
    "prefect": ("flows/*.py", "flows/runtime/*", "flows/deploy/*"),
    "prefect_dask": ("flows/runtime/*",),
    "torch": ("uwm/**/*",),
    "tensorstore": ("storage_schemas/store/*",),
    "zarr": ("storage_schemas/store/*", "uwm/benchmarks/published_layout.py", "uwm/benchmarks/catalogs.py"),
    "icechunk": ("uwm/benchmarks/catalogs.py",),
    "deltalake": ("storage_schemas/**/*",),
}
"""Package -> glob patterns of the files that may import it."""
TORCHLESS = (
    "uwm/report/*",
    *(f"uwm/{name}.py" for name in ("conditions", "config", "earlier_configs", "overrides", "policies", "recipes")),
    *(f"uwm/{name}.py" for name in ("registry", "settings", "training_config")),
)


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def inside(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(path in ROOT.glob(pattern) for pattern in patterns)


def test_there_are_modules_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in modules()} == set(ROOMS)


def test_no_product_code_lies_outside_the_rooms() -> None:
    """Code that no rule above knows could import anything unseen."""
    rooms = {*ROOMS, "tests", "docs"}
    outside = [path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] not in rooms]
    assert not [path for path in outside if not path.relative_to(ROOT).parts[0].startswith((".", "runs"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_to_its_layer(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module in imports(path):
        top = module.split(".")[0]
        if top in ROOMS:
            assert top in MAY_IMPORT[name.split("/")[0]], f"{name} imports {module}"
        if top in ONLY_IN:
            assert inside(path, ONLY_IN[top]), f"{name} imports {module}"
        if top == "torch":
            assert not inside(path, TORCHLESS), f"{name} imports {module}"
