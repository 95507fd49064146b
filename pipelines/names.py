"""What options may name: the formats of sources, and the findings that keep an episode out. Imports nothing heavy."""

import difflib
from collections.abc import Collection

FORMATS = {
    "droid-rlds": "rlds",
    "rlds": "rlds",
    "lerobot": "lerobot",
    "droid-raw": "droid_raw",
    "libero": "libero",
    "robomimic": "robomimic",
    "aloha": "aloha",
    "replay-buffer": "replay_buffer",
    "video": "video",
}
"""The registry of sources: format -> module in `pipelines.sources`, in the order of detection."""

MAPPINGS = ("bridge", "droid", "fractal")
"""What the fields of some RLDS data sets mean, shipped in `pipelines/sources/mappings`."""

CHECKS = {
    "black": "frames without light",
    "static": "nothing moves from the first frame to the last",
    "idle": "nothing moves for two seconds or more",
    "duplicate": "looks like an episode seen before, or has the same bytes",
    "missing_camera": "a robot episode lacks one of the cameras",
    "out_of_range": "known actions outside of what the action space allows",
    "time_gap": "no frame for longer than the rate allows",
    "too_short": "too few steps to predict anything",
}
"""The checks that a source passes and still may not be wanted, and what each means."""

FILTERS = {"copy": "has the same bytes as another", **CHECKS}
"""What can be filtered; "duplicate" includes "copy"."""

NO_FILTER = "none"


def check_name(kind: str, name: str, names: Collection[str]) -> str:
    """The name, when it is one of `names`. Raises ValueError with the nearest, or all, when it is not."""
    if name not in names:
        near = difflib.get_close_matches(name, list(names), n=1)
        raise ValueError(
            f"unknown {kind} {name!r}: {f'did you mean {near[0]}?' if near else 'use ' + ', '.join(names)}"
        )
    return name
