"""What a run makes of each of its datasets, before it trains: used, converted, masked, dropped."""

from collections.abc import Sequence
from pathlib import Path

from storage_schemas.errors import UserError
from storage_schemas.spaces import Part
from uwm.config import DataConfig
from uwm.data.cameras import camera_map
from uwm.data.condition import state_plans
from uwm.data.mixture import Member
from uwm.data.state_plan import StatePlan
from uwm.events import DatasetPlan
from uwm.language.instructions import texts_of

PLANS_FILE = "data.txt"


def dataset_plans(members: Sequence[Member], config: DataConfig) -> tuple[DatasetPlan, ...]:
    """One plan for each dataset, in order; whatever a dataset has is in it.

    Args:
        members: the datasets, pinned.
        config: of the run, pinned.
    """
    return tuple(_plan(member, config) for member in members)


def write_plans(folder: Path, plans: Sequence[DatasetPlan]) -> None:
    """Write `data.txt` into a run's folder, to be read. Raises UserError when it can't be written."""
    parts = []
    for plan in plans:
        facts = [f"  {name:<17} {text}" for name, text in plan.facts.items()]
        parts.append("\n".join([f"{plan.uri} version {plan.version}", *facts]))
    try:
        (folder / PLANS_FILE).write_text("\n\n".join(parts) + "\n")
    except OSError as error:
        raise UserError(f"can't write {folder / PLANS_FILE}: {error.strerror}") from error


def _plan(member: Member, config: DataConfig) -> DatasetPlan:
    spec, plan = member.dataset.spec, member.plan
    cameras = camera_map(spec, member.ref, config.cameras)
    same, converted, masked, dropped = _actions(member)
    return DatasetPlan(
        uri=member.ref.uri,
        version=member.dataset.version,
        robot=member.ref.embodiment,
        cameras=cameras,
        lacks=tuple(camera for camera in config.cameras if camera not in cameras),
        dropped_cameras=tuple(camera for camera in spec.cameras if camera not in cameras.values()),
        same=same,
        converted=converted,
        masked=masked,
        dropped=dropped,
        **_states(member, config),
        instructions=_instructions(member, config),
        rate=spec.action.rate if spec.action else None,
        stride=plan.stride,
        steps=int(member.lengths.sum()),
        action_steps=member.known_actions,
    )


def _actions(member: Member) -> tuple[tuple[str, ...], ...]:
    """Parts of the actions: same, converted, masked, dropped."""
    plan = member.plan
    undeclared = (f"all {plan.target_dim} numbers, which are not declared",)
    wanted = tuple(map(_name, plan.target.parts)) if plan.target else undeclared
    if not member.recorded_actions:
        return (), (), wanted, ()
    if plan.how == "same":
        return wanted, (), (), ()
    pairs = [(route, route.source) for route in plan.routes]
    return (
        tuple(_name(route.target) for route, _ in pairs if route.how == "same"),
        tuple(
            f"{source.text} -> {route.target.text}" for route, source in pairs if source and route.how == "converted"
        ),
        tuple(_name(route.target) for route, source in pairs if source is None),
        tuple(map(_name, plan.dropped)),
    )


def _name(part: Part) -> str:
    """The name of a part; of one that says nothing else, that it does not."""
    return part.name if part.quantity != "other" else f"{part.name} (its meaning is unknown)"


def _states(member: Member, config: DataConfig) -> dict[str, tuple[str, ...]]:
    """What becomes of the fields that the dataset's first chosen episode has, by the names of `DatasetPlan`."""
    dataset = member.dataset
    held = [field.name for field in dataset.schema(int(member.rows[0])).state]
    plans = state_plans(dataset, member.ref, config)
    used = [plan for plan in plans if plan.field in held]
    return {
        "states": tuple(_state(plan) for plan in used),
        "lacks_states": tuple(plan.state.name for plan in plans if plan not in used),
        "dropped_states": tuple(name for name in held if name not in {plan.field for plan in used}),
    }


def _state(plan: StatePlan) -> str:
    name = plan.state.name
    if plan.source is not None and plan.state.space is not None:
        return f"{'; '.join(plan.source.lines)} -> {name}: {'; '.join(plan.state.space.lines)}"
    return name if plan.field == name else f"{name} (its {plan.field})"


def _instructions(member: Member, config: DataConfig) -> str:
    told = sum(map(bool, texts_of(member.dataset, member.rows)))
    heard = "heard" if config.language.is_heard else "not heard"
    return f"in {told:,} of {len(member.rows):,} episodes, {heard}" if told else ""
