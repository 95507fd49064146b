"""The pages as files that open without a server."""

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from flows.browse.episodes import Browsed
from flows.browse.videos import write_video
from storage_schemas.errors import UserError


def page() -> str:
    """The one page; all else it loads as scripts, which works for files as well."""
    return files("flows.browse").joinpath("page.html").read_text(encoding="utf-8")


def script(function: str, value: Any) -> str:
    """A script that hands a value to a function of the page."""
    return f"{function}({json.dumps(value, ensure_ascii=True, allow_nan=False)});\n"


def write_site(
    browsed: Browsed, folder: Path, *, most: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Write the pages of a dataset version.

    Args:
        browsed: what they show.
        folder: a new one.
        most: episodes that are written whole, evenly spread; of the others there is their line.
        progress: is told how many episodes are written, of how many.

    Returns:
        How many episodes were written whole.

    Raises:
        UserError: when the folder is there already.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: name a new folder")
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "episodes").mkdir(parents=True)
    total = len(browsed.dataset)
    count = min(most, total)
    rows = [number * total // count for number in range(count)] if count else []
    overview = browsed.overview() | {"whole": rows}
    (temporary / "index.html").write_text(page(), encoding="utf-8")
    (temporary / "overview.js").write_text(script("showOverview", overview))
    for done, row in enumerate(rows):
        progress(done, count)
        shown = browsed.episode(row)
        (temporary / "episodes" / f"{row}.js").write_text(script("showEpisode", shown))
        for view in shown["views"]:
            name = f"{row}-{browsed.dataset.spec.cameras.index(view['camera'])}.mp4"
            write_video(browsed.dataset, row, view["camera"], temporary / "episodes" / name)
    progress(count, count)
    temporary.rename(folder)
    return count
