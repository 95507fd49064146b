"""LIBERO: demonstrations in HDF5, in robomimic's layout but not with its meaning.

Images lie upside down, as OpenGL renders them (`macros_image_convention`), and are stored upright.

LIBERO records an observation after it has stepped: `obs[i]` is what action i led to, while `states[i]` is the
simulator's state before it. The command given at observation i is therefore action i + 1: step i of an episode has
`obs[i]` and action i + 1, and the last step's action is unknown, for nobody gave one. The first action, whose
observation was never recorded, is kept in `simulator_action`, which replays the episode: put the simulator of its raw
file (`model_file` and `bddl_file_name` there) into `simulator[0]` and give it `simulator_action` row by row; the state
that row i leads to is what the cameras see at step i.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.files import SourceFile
from pipelines.hdf5.demonstrations import Demonstrations, Facts, is_libero, json_attribute, look
from pipelines.hdf5.files import has_suffix
from pipelines.hdf5.layout import Attributes
from pipelines.hdf5.robosuite import AXIS_ANGLE, POSITION, QUATERNION, joints
from pipelines.options import IngestOptions
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Part, Space, StateField

_FINGERS = joints(2, "m").model_copy(update={"name": "gripper_joint_position"})
_STATES: Mapping[str, tuple[Part, ...]] = {
    "obs/ee_pos": (POSITION,),
    "obs/ee_ori": (AXIS_ANGLE,),
    "obs/ee_states": (POSITION, AXIS_ANGLE),
    "obs/gripper_states": (_FINGERS,),
    "obs/joint_states": (joints(7),),
    "robot_states": (_FINGERS, POSITION, QUATERNION),
}
"""What LIBERO's scripts write under these names, for its one robot."""


class Libero(Demonstrations):
    """Reader of LIBERO's files."""

    format: ClassVar[str] = "libero"
    _placeholder: ClassVar[DatasetSpec] = DatasetSpec(cameras=("agentview_rgb", "eye_in_hand_rgb"), action_dim=7)

    def _check_kind(self, attributes: Attributes) -> None:
        if not is_libero(attributes):
            raise BadDataError("other_format", "it lacks LIBERO's problem_info: use --format robomimic")

    def _is_upright(self, facts: Facts) -> bool:
        return facts.attributes.get("macros_image_convention", "opengl") != "opengl"

    def _language(self, facts: Facts) -> tuple[str, ...]:
        text = json_attribute(facts.attributes, "problem_info").get("language_instruction")
        text = "".join(text) if isinstance(text, list) and all(isinstance(part, str) for part in text) else text
        return (text.strip(),) if isinstance(text, str) and text.strip() else ()

    def _aligned(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        known = np.ones(len(actions), np.bool_)
        known[-1] = False
        return np.concatenate([actions[1:], np.zeros_like(actions[:1])]), known

    def _success(self, state: Mapping[str, NDArray[Any]], facts: Facts) -> bool | None:
        rewards = state.get("rewards")
        return None if rewards is None else bool(rewards.any())

    def _declared(self, name: str, dim: int) -> StateField | None:
        parts = _STATES.get(name, ())
        return StateField(name=name, space=Space(parts=parts)) if parts and sum(p.dim for p in parts) == dim else None


def is_mine(name: str) -> bool:
    """Whether a file name is that of an HDF5 file."""
    return has_suffix(name)


def recognizes(file: SourceFile) -> bool:
    """Whether a file holds LIBERO's demonstrations."""
    attributes = look(file)
    return attributes is not None and is_libero(attributes)


def open_reader(source: str, options: IngestOptions, dataset: DatasetSpec | None) -> Libero:
    """For the registry."""
    return Libero(source, options, dataset)
