"""robomimic: demonstrations in HDF5, as robomimic records them in robosuite and as MimicGen and others write them.

Observation i is what action i was given for, and `states[i]` the simulator's state at the same time, so every action
is known. Images are upright. `next_obs` repeats `obs` a step later and is left out, as is `mask`: an episode's split
comes from its content.

To replay an episode, put the simulator of its raw file (`model_file` of its group) into `simulator[0]` and give it
`simulator_action` row by row.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.hdf5.demonstrations import Demonstrations, Facts, is_libero, look
from pipelines.hdf5.files import has_suffix
from pipelines.hdf5.layout import Attributes
from pipelines.hdf5.robosuite import observed
from pipelines.options import IngestOptions
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import StateField


class Robomimic(Demonstrations):
    """Reader of robomimic's files."""

    format: ClassVar[str] = "robomimic"
    _placeholder: ClassVar[DatasetSpec] = DatasetSpec(cameras=("agentview_image",), action_dim=7)

    def _check_kind(self, attributes: Attributes) -> None:
        if is_libero(attributes):
            raise BadDataError("other_format", "it is LIBERO's, whose images lie upside down: use --format libero")

    def _is_upright(self, facts: Facts) -> bool:
        return True

    def _language(self, facts: Facts) -> tuple[str, ...]:
        """The environment's language, which some datasets have."""
        text = facts.env.get("env_lang")
        return (text.strip(),) if isinstance(text, str) and text.strip() else ()

    def _aligned(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return actions, np.ones(len(actions), np.bool_)

    def _success(self, state: Mapping[str, NDArray[Any]], facts: Facts) -> bool | None:
        """A reward of 1 means success where rewards are nothing but 0 and 1."""
        rewards = state.get("rewards")
        if rewards is None or not np.isin(rewards, (0, 1)).all():
            return None
        return bool(rewards.any())

    def _declared(self, name: str, dim: int) -> StateField | None:
        return observed(name, dim)


def is_mine(name: str) -> bool:
    """Whether a file name is that of an HDF5 file."""
    return has_suffix(name)


def recognizes(file: SourceFile) -> bool:
    """Whether a file holds demonstrations that are not LIBERO's."""
    attributes = look(file)
    return attributes is not None and not is_libero(attributes)


def open_reader(source: str, options: IngestOptions, dataset: DatasetSpec | None) -> Robomimic:
    """For the registry."""
    return Robomimic(source, options, dataset)
