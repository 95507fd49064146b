"""Fields of the robot's state at the steps of an observation.

What a dataset's field means decides what becomes of it in a run: the same, converted, or masked. On a local disk fields
are read from the files, one range of bytes for each; of a remote dataset they lie in memory that all loader processes
share, as its actions do.

Letters: O observation frames, D numbers of all states of a run, n steps, d numbers of one field, e of one state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.spaces import undeclared
from storage_schemas.store.dataset import Dataset, blaming
from uwm.conditions import RunState
from uwm.data.actions import read_whole, starts_of
from uwm.data.mixture import Member
from uwm.data.state_plan import StatePlan, says, state_plan
from uwm.registry import nearest
from uwm.settings import replace


class StateTable:
    """All numbers of some fields of some episodes of a remote dataset; pickling it to a worker shares the memory.

    Args:
        dataset: a dataset version.
        rows: the episodes.
        fields: of the state -> their numbers.

    Raises:
        DamagedError: when an array is shorter than the episodes say.
    """

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64], fields: Mapping[str, int]) -> None:
        self._starts, total = starts_of(dataset, rows), int(dataset.episodes.lengths[rows].sum())
        self._values: dict[str, Tensor] = {}
        self._held: dict[str, NDArray[np.bool_]] = {}
        for field, dim in fields.items():
            name = f"state/{field}"
            held = np.array([row for row in rows.tolist() if name in dataset.schema(row).numbers], np.int64)
            kinds = {dataset.schema(row).numbers[name].dtype.name for row in held.tolist()}
            kind = torch.float32 if kinds <= {"float32"} else torch.float64
            values = torch.zeros(total, dim, dtype=kind)
            read_whole(dataset, held, self._starts, {name: values})
            self._values[field] = values.share_memory_()  # type: ignore[no-untyped-call]
            self._held[field] = np.isin(np.arange(len(dataset.episodes)), held)

    def numbers(self, episode: int, field: str, step: int, count: int) -> NDArray[Any] | None:
        """(count, d) of a field from `step` on; None where the episode lacks it."""
        if not self._held[field][episode]:
            return None
        first = int(self._starts[episode]) + step
        values: NDArray[Any] = self._values[field][first : first + count].numpy()
        return values


def share_states(dataset: Dataset, rows: NDArray[np.int64], plans: Sequence[StatePlan]) -> StateTable | None:
    """The table of a remote dataset; None for a local one, or when nothing is asked for."""
    fields = {plan.field: plan.dim for plan in plans if plan.field}
    return None if dataset.is_local or not fields else StateTable(dataset, rows, fields)


class StateReader:
    """Reads the observed states of samples of one dataset. Picklable; opens nothing until it reads.

    Args:
        dataset: where they are.
        plans: of the run's states, in its order.
        table: of a remote dataset.
    """

    def __init__(self, dataset: Dataset, plans: Sequence[StatePlan], table: StateTable | None = None) -> None:
        self._dataset = dataset
        self._plans = tuple(plans)
        self._table = table

    def read(
        self, episode: int, steps: NDArray[np.int64], values: NDArray[np.float64], mask: NDArray[np.bool_]
    ) -> None:
        """Fill in what is known of a sample.

        Args:
            episode: row of the dataset.
            steps: (O,) that never descend.
            values: (O, D) zeros, in the run's units.
            mask: (O, D) False; stays so where the episode lacks a field, or holds no finite number.
        """
        first = int(steps[0])
        count, place = int(steps[-1]) - first + 1, 0
        for plan in self._plans:
            until = place + plan.state.dim
            found = self._numbers(episode, plan, first, count) if plan.field else None
            if found is not None:
                values[:, place:until], mask[:, place:until] = plan.apply(found[steps - first])
            place = until

    def _numbers(self, episode: int, plan: StatePlan, step: int, count: int) -> NDArray[Any] | None:
        source = self._dataset.state if self._table is None else self._table.numbers
        with blaming(self._dataset, episode):
            found = source(episode, plan.field, step, count)
        if found is not None and found.shape[1] != plan.dim:
            raise UserError(
                f"{self._dataset.uri}: state {plan.field} of episode {self._dataset.episodes.episode_ids[episode]} has "
                f"{found.shape[1]} numbers, not {plan.dim}: choose other collections, or leave it out of data.states"
            )
        return found


def resolve_states(members: Sequence[Member], states: Sequence[RunState]) -> tuple[RunState, ...]:
    """The states of a run with what their numbers mean, where nobody has said it yet.

    It is what the first dataset that declares a field says; of a field that none declares, how many numbers it has.

    Args:
        members: of the run.
        states: that it observes.

    Raises:
        UserError: when no member has one of them, or one has it with another number of numbers than it says.
    """
    if not states:
        return ()
    held = [member.dataset.episodes.fields(member.rows) for member in members]
    resolved = tuple(_resolved(members, held, state) for state in states)
    for member, fields in zip(members, held, strict=True):
        for state in resolved:
            plan = state_plan(member.dataset.spec, member.ref, state)
            if plan.field in fields and fields[plan.field] != {plan.dim}:
                dims = " or ".join(map(str, sorted(fields[plan.field])))
                raise UserError(
                    f"{member.ref.uri}: the state {plan.field} has {dims} numbers, not {plan.dim}: choose other "
                    f"collections, or leave it out with states={{{state.name!r}: ''}} of the dataset"
                )
    return resolved


def _resolved(members: Sequence[Member], held: Sequence[Mapping[str, set[int]]], state: RunState) -> RunState:
    """The state with its space."""
    spaces = []
    for member, fields in zip(members, held, strict=True):
        field = member.ref.states.get(state.name, state.name)
        if field in fields:
            spaces.append(member.dataset.spec.state(field) or undeclared(state.name, min(fields[field])))
    if state.space is not None:
        return state
    if not spaces:
        there = sorted({name for fields in held for name in fields})
        raise UserError(
            f"no dataset of the run has the state {state.name!r} of data.states{nearest(state.name, there)}; "
            f"there are {', '.join(there) or 'none'}"
        )
    return replace(state, space=next((space for space in spaces if says(space)), spaces[0]))
