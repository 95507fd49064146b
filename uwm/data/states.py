"""Fields of the robot's state at the steps of an observation.

On a local disk they are read from the files, one range of bytes for each field; of a remote dataset they lie in memory
that all loader processes share, as its actions do.

Letters: O observation frames, D numbers of all states, d numbers of one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.spaces import Space, undeclared
from storage_schemas.store.dataset import Dataset, blaming
from uwm.conditions import RunState
from uwm.data.actions import read_whole, starts_of
from uwm.data.mixture import Member
from uwm.registry import nearest
from uwm.settings import replace


class StateTable:
    """All numbers of some fields of some episodes of a remote dataset; pickling it to a worker shares the memory.

    Args:
        dataset: a dataset version.
        rows: the episodes.
        fields: of the state.

    Raises:
        DamagedError: when an array is shorter than the episodes say.
    """

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64], fields: Sequence[RunState]) -> None:
        self._starts, total = starts_of(dataset, rows), int(dataset.episodes.lengths[rows].sum())
        self._values: dict[str, Tensor] = {}
        self._held: dict[str, NDArray[np.bool_]] = {}
        for field in fields:
            name = f"state/{field.name}"
            held = np.array([row for row in rows.tolist() if name in dataset.schema(row).numbers], np.int64)
            kinds = {dataset.schema(row).numbers[name].dtype.name for row in held.tolist()}
            kind = torch.float32 if kinds <= {"float32"} else torch.float64
            values = torch.zeros(total, field.dim, dtype=kind)
            read_whole(dataset, held, self._starts, {name: values})
            self._values[field.name] = values.share_memory_()  # type: ignore[no-untyped-call]
            self._held[field.name] = np.isin(np.arange(len(dataset.episodes)), held)

    def numbers(self, episode: int, field: str, step: int, count: int) -> NDArray[Any] | None:
        """(count, d) of a field from `step` on; None where the episode lacks it."""
        if not self._held[field][episode]:
            return None
        first = int(self._starts[episode]) + step
        values: NDArray[Any] = self._values[field][first : first + count].numpy()
        return values


def share_states(dataset: Dataset, rows: NDArray[np.int64], fields: Sequence[RunState]) -> StateTable | None:
    """The table of a remote dataset; None for a local one, or when nothing is asked for."""
    return None if dataset.is_local or not fields else StateTable(dataset, rows, fields)


class StateReader:
    """Reads the observed states of samples of one dataset. Picklable; opens nothing until it reads.

    Args:
        dataset: where they are.
        fields: of the run, in its order.
        table: of a remote dataset.
    """

    def __init__(self, dataset: Dataset, fields: Sequence[RunState], table: StateTable | None = None) -> None:
        self._dataset = dataset
        self._fields = tuple(fields)
        self._table = table

    def read(
        self, episode: int, steps: NDArray[np.int64], values: NDArray[np.float64], mask: NDArray[np.bool_]
    ) -> None:
        """Fill in what is known of a sample.

        Args:
            episode: row of the dataset.
            steps: (O,) that ascend, each the one before or the next.
            values: (O, D) zeros, in the store's units.
            mask: (O, D) False; stays so where the episode lacks a field, or holds no finite number.
        """
        first = int(steps[0])
        count, place = int(steps[-1]) - first + 1, 0
        for field in self._fields:
            found = self._numbers(episode, field, first, count)
            if found is not None:
                taken = found[steps - first]
                known = np.isfinite(taken)
                mask[:, place : place + field.dim] = known
                values[:, place : place + field.dim] = np.where(known, taken, 0.0)
            place += field.dim

    def _numbers(self, episode: int, field: RunState, step: int, count: int) -> NDArray[Any] | None:
        source = self._dataset.state if self._table is None else self._table.numbers
        with blaming(self._dataset, episode):
            found = source(episode, field.name, step, count)
        if found is not None and found.shape[1] != field.dim:
            raise UserError(
                f"{self._dataset.uri}: state {field.name} of episode {self._dataset.episodes.episode_ids[episode]} has "
                f"{found.shape[1]} numbers, the run observes {field.dim}: choose other collections or another state"
            )
        return found


def resolve_states(members: Sequence[Member], states: Sequence[RunState]) -> tuple[RunState, ...]:
    """The states of a run with what their numbers mean, where nobody has said it yet.

    Args:
        members: of the run.
        states: that it observes.

    Raises:
        UserError: when no member has one of them, or one has it with other numbers or another meaning.
    """
    if not states:
        return ()
    held = [member.dataset.episodes.fields(member.rows) for member in members]
    resolved = []
    for state in states:
        found = state
        for member, fields in zip(members, held, strict=True):
            if state.name in fields:
                found = _agreed(found, member, fields[state.name])
        if found.space is None:
            there = sorted({name for fields in held for name in fields})
            raise UserError(
                f"no dataset of the run has the state {state.name!r} of data.states{nearest(state.name, there)}; "
                f"there are {', '.join(there) or 'none'}"
            )
        resolved.append(found)
    return tuple(resolved)


def _agreed(state: RunState, member: Member, dims: set[int]) -> RunState:
    """The state as a member has it, which is as the run and the members before have it."""
    uri, declared = member.dataset.uri, member.dataset.spec.state(state.name)
    if len(dims) != 1:
        raise UserError(
            f"{uri}: the state {state.name} has {' or '.join(map(str, sorted(dims)))} numbers, from episode to "
            "episode: choose collections in which it has one number, or leave it out of data.states"
        )
    space = declared or undeclared(state.name, dims.pop())
    if state.space is None:
        return replace(state, space=space)
    if state.dim != space.dim or (
        declared is not None and _says(state.space) and _says(space) and space != state.space
    ):
        raise UserError(
            f"{uri} has another {state.name} than the run: {'; '.join(space.lines)} instead of "
            f"{'; '.join(state.space.lines)}: leave it out of data.states, or train without this dataset"
        )
    return state


def _says(space: Space) -> bool:
    """Whether a space says what its numbers mean."""
    return any(part.quantity != "other" for part in space.parts)
