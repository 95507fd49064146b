"""The folder of an evaluation: `evaluation.json` and, with predictions to look at, `examples.npz`.

Dimension letters: E examples, V views, H and W image size, S action steps, A action dimensions.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_schemas.documents import read_document, write_document
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import locate
from uwm.eval.result import Evaluation

RESULT_FILE = "evaluation.json"
EXAMPLES_FILE = "examples.npz"
MAX_EXAMPLES_BYTES = 512 << 20

_SHAPES = {
    "current": "EVHWC",
    "current_mask": "EV",
    "true": "EVHWC",
    "true_mask": "EV",
    "reconstruction": "EVHWC",
    "action": "ESA",
    "action_mask": "ESA",
    "mean_action": "A",
    "frame": "EVHWC",
    "predicted": "ESA",
}


@dataclass(frozen=True, kw_only=True)
class ExampleArrays:
    """What a few segments look like, and what each mode made of them.

    Frames are uint8 RGB; of the next observation the last frame is kept. Actions are float32 in the
    store's units.

    Raises:
        ValueError: when the shapes disagree.
    """

    current: NDArray[np.uint8]  # (E, V, H, W, 3)
    current_mask: NDArray[np.bool_]  # (E, V)
    true: NDArray[np.uint8]  # (E, V, H, W, 3)
    true_mask: NDArray[np.bool_]  # (E, V)
    action: NDArray[np.float32]  # (E, S, A)
    action_mask: NDArray[np.bool_]  # (E, S, A)
    mean_action: NDArray[np.float32]  # (A,)
    reconstruction: NDArray[np.uint8] | None = None  # (E, V, H, W, 3), the tokenizer's own, when frames are predicted
    frames: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # mode -> (E, V, H, W, 3)
    actions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # mode -> (E, S, A)

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {"C": 3}
        for name, array in self.arrays().items():
            letters = _SHAPES[name.partition("/")[0]]
            if array.ndim != len(letters):
                raise ValueError(f"{name} has {array.ndim} dimensions, not {len(letters)}")
            for letter, size in zip(letters, array.shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise ValueError(f"{name} is {array.shape}: {letter} is {sizes[letter]} elsewhere")

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays under the names that they have in the file."""
        named: dict[str, NDArray[np.generic]] = {
            name: value
            for name in _SHAPES
            if name not in ("frame", "predicted") and (value := getattr(self, name)) is not None
        }
        named |= {f"frame/{mode}": values for mode, values in self.frames.items()}
        return named | {f"predicted/{mode}": values for mode, values in self.actions.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The inverse of `arrays`; files of before masks had dimensions say whole steps, (E, S).

        Raises:
            TypeError: when an array is missing or unknown.
            ValueError: when the shapes disagree.
        """
        fixed: dict[str, Any] = {name: values for name, values in arrays.items() if "/" not in name}
        if "action_mask" in fixed and fixed["action_mask"].ndim == 2 and "action" in fixed:
            fixed["action_mask"] = np.repeat(fixed["action_mask"][..., None], fixed["action"].shape[-1], axis=2)
        frames, actions = _below(arrays, "frame/"), _below(arrays, "predicted/")
        if len(fixed) + len(frames) + len(actions) != len(arrays):
            raise TypeError(f"unknown arrays among {', '.join(arrays)}")
        return cls(**fixed, frames=frames, actions=actions)


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def save_evaluation(folder: str, evaluation: Evaluation, examples: ExampleArrays | None = None) -> Evaluation:
    """Write an evaluation under a path or URI; each file appears whole, `evaluation.json` last.

    Returns:
        The evaluation as written: it names the hash of its examples.

    Raises:
        UserError: when the folder can't be written.
    """
    content = b""
    if examples is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **examples.arrays())
        content = buffer.getvalue()
    named = evaluation.model_copy(update={"examples_sha256": hashlib.sha256(content).hexdigest() if content else ""})
    try:
        if content:
            (locate(folder) / EXAMPLES_FILE).write_bytes(content)
        write_document(locate(folder) / RESULT_FILE, named)
    except OSError as error:
        raise UserError(f"can't write the evaluation to {folder}: {error.strerror or error}") from error
    return named


def load_evaluation(folder: str) -> Evaluation:
    """Read `evaluation.json` of a folder.

    Raises:
        UserError: when there is none, or it can't be read.
    """
    return read_document(locate(folder) / RESULT_FILE, Evaluation, hint="make it with `uwm evaluate`")


def load_examples(folder: str, evaluation: Evaluation) -> ExampleArrays | None:
    """The arrays of `examples.npz`; None when the evaluation kept none.

    Raises:
        UserError: when the file is missing, damaged or belongs to another evaluation.
    """
    if not evaluation.examples_sha256:
        return None
    location = locate(folder) / EXAMPLES_FILE
    try:
        content = location.read_bytes(0, MAX_EXAMPLES_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"no {location.name} in {location.parent.uri}: make it with `uwm evaluate`") from error
    if len(content) > MAX_EXAMPLES_BYTES:
        raise DamagedError(f"{location.uri} is larger than {MAX_EXAMPLES_BYTES} bytes")
    if hashlib.sha256(content).hexdigest() != evaluation.examples_sha256:
        raise DamagedError(f"{location.uri} does not belong to its {RESULT_FILE}: evaluate again")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        examples = ExampleArrays.from_arrays(arrays)
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{location.uri} is damaged: {error}") from error
    if len(examples.current) != len(evaluation.examples):
        raise DamagedError(
            f"{location.uri} holds {len(examples.current)} examples, {RESULT_FILE} {len(evaluation.examples)}"
        )
    return examples
