"""What samples are conditioned on beside images: the robot's states and instructions, as the loader reads them.

Dimension letters: B batch, O observation frames, D numbers of the observed states, E features of an instruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.store.dataset import Dataset
from uwm.config import DataConfig, DatasetRef
from uwm.data.mixture import Member
from uwm.data.sampler import Pick
from uwm.data.state_plan import StatePlan, state_plan
from uwm.data.states import StateReader, StateTable, share_states
from uwm.language.instructions import InstructionTable


@dataclass(frozen=True, kw_only=True)
class ConditionTable:
    """What of one dataset lies in memory that all loader processes share."""

    states: StateTable | None = None
    """Of a remote dataset; None reads states from the store."""
    instructions: InstructionTable | None = None
    """None: no sample hears anything."""


def condition_table(member: Member, config: DataConfig, seed: int | None) -> ConditionTable:
    """What a run, or with seed None an evaluation, needs of a dataset's chosen episodes.

    Raises:
        UserError: when an instruction is not encoded.
    """
    heard, plans = config.language.is_heard, state_plans(member.dataset, member.ref, config)
    return ConditionTable(
        states=share_states(member.dataset, member.rows, plans),
        instructions=InstructionTable(member.dataset, member.rows, config.language, seed) if heard else None,
    )


def state_plans(dataset: Dataset, ref: DatasetRef, config: DataConfig) -> tuple[StatePlan, ...]:
    """What becomes of a dataset's fields in each of a run's states."""
    return tuple(state_plan(dataset.spec, ref, state) for state in config.states)


class Condition(NamedTuple):
    """What the samples of a batch are conditioned on beside images."""

    state: Tensor  # (B, O, D) float64, in the store's units
    state_mask: Tensor  # (B, O, D) bool
    language: Tensor  # (B, E) float32
    language_mask: Tensor  # (B,) bool


class ConditionReader:
    """Reads what samples of a run's datasets are conditioned on. Picklable; opens nothing until it reads.

    Args:
        datasets: of the mixture, in its order.
        config: which states, and whether there are instructions.
        refs: how the run names each dataset.
        tables: of each dataset; without them states are read from the store and nothing is heard.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        config: DataConfig,
        refs: Sequence[DatasetRef],
        tables: Sequence[ConditionTable] = (),
    ) -> None:
        each = tuple(tables) or (ConditionTable(),) * len(datasets)
        self._states = [
            StateReader(dataset, state_plans(dataset, ref, config), table.states)
            for dataset, ref, table in zip(datasets, refs, each, strict=True)
        ]
        self._instructions = [table.instructions for table in each]
        self._shape = (config.obs_frames, config.state_dim)
        self._features = config.language.width

    def read(self, picks: Sequence[Pick], steps: Sequence[NDArray[np.int64]]) -> Condition:
        """The condition of samples.

        Args:
            picks: B samples.
            steps: of each the O steps of its observation.
        """
        size = len(picks)
        state = np.zeros((size, *self._shape))
        mask = np.zeros(state.shape, np.bool_)
        for row, (pick, taken) in enumerate(zip(picks, steps, strict=True) if self._shape[1] else ()):
            self._states[pick.dataset].read(pick.segment.episode, taken, state[row], mask[row])
        language, heard = torch.zeros(size, self._features), torch.zeros(size, dtype=torch.bool)
        for number, table in enumerate(self._instructions):
            if table is not None:
                table.read([(row, pick) for row, pick in enumerate(picks) if pick.dataset == number], language, heard)
        return Condition(torch.from_numpy(state), torch.from_numpy(mask), language, heard)
