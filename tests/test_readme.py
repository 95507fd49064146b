"""README's printed tree against the disk: every file listed exists, every module is listed."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("storage_schemas", "pipelines", "uwm", "flows")


def printed_tree() -> dict[str, str]:
    """Path -> comment of every line of README's tree (two spaces of indentation per level)."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, "README has no tree between the marker and the fence"
    parents: list[str] = []
    tree = {}
    for line in block.group(1).splitlines():
        match = re.fullmatch(r"( *)(\S+)(?: +(.*))?", line)
        assert match, line
        level = len(match.group(1)) // 2
        parents = [*parents[:level], match.group(2).rstrip("/")]
        tree["/".join(parents)] = match.group(3) or ""
    return tree


def test_everything_printed_exists() -> None:
    missing = [path for path in printed_tree() if not (ROOT / path).exists()]
    assert not missing


def test_every_module_is_printed_with_a_comment() -> None:
    tree = printed_tree()
    modules = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py" or path.read_text().count("\n") > 5
    }
    assert not modules - tree.keys()
    assert not [path for path in modules if not tree[path]]
