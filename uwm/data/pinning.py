"""What a run leaves open about its robots is filled in from its data before it starts, and kept in its checkpoints."""

from collections.abc import Sequence
from dataclasses import replace as changed

from storage_schemas.conversions import union
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.spaces import Space
from uwm.config import DataConfig, DatasetRef, Embodiment
from uwm.data.action_plan import action_plan
from uwm.data.mixture import Member
from uwm.settings import replace


def pin_robots(
    config: DataConfig, members: Sequence[Member], parent: DataConfig | None = None
) -> tuple[DataConfig, tuple[Member, ...]]:
    """Fill in the run's action space, the cameras that stand for its own, and its robots.

    The action space is what is given, else the parent's, else that of the first dataset with known actions, or of all
    of them together; it stays open when the first declares none. Robots that a parent knows keep their ids.

    Args:
        config: of the run.
        members: its datasets, in order.
        parent: of the run that it starts from.

    Returns:
        The configuration with nothing left open, and the members with their plans in it.

    Raises:
        UserError: when datasets with and without a declared action space would be mixed.
    """
    action = config.action or (parent.action if parent else None) or _declared(config, members)
    config = replace(config, action=action, datasets=[member.ref for member in members])
    members = [_planned(member, config, member.ref) for member in members]
    if action is None:
        _check_undeclared(members)
    robots = {robot.name: robot.action for robot in config.embodiments or (parent.embodiments if parent else ())}
    named: list[Member] = []
    for member in members:
        name = _robot(member, robots)
        if name:
            robots.setdefault(name, member.plan.strides)
        named.append(_planned(member, config, replace(member.ref, embodiment=name)))
    embodiments = [Embodiment(name=name, action=space) for name, space in robots.items()]
    datasets = [member.ref for member in named]
    return replace(config, embodiments=embodiments, datasets=datasets), tuple(named)


def _declared(config: DataConfig, members: Sequence[Member]) -> Space | None:
    """What the datasets with actions say of them. Raises UserError when they can't be told together."""
    spaces = [member.plan.strides for member in members if member.recorded_actions]
    if config.actions_from == "first" or not all(spaces):
        return spaces[0] if spaces else None
    try:
        return union([space for space in spaces if space is not None])
    except ValueError as error:
        raise UserError(f"{error}: set data.action, or leave one of them out") from error


def robot_of(ref: DatasetRef, spec: DatasetSpec, config: DataConfig) -> int:
    """The id of a dataset's robot in a run: as it is named, else by what its actions mean; 0 when that says nothing."""
    if ref.embodiment:
        return config.robots.index(ref.embodiment) + 1 if ref.embodiment in config.robots else 0
    spaces, action = [robot.action for robot in config.embodiments], action_plan(spec, ref, config).strides
    return spaces.index(action) + 1 if action is not None and action in spaces else 0


def robot_name(robot: int, config: DataConfig) -> str:
    """The name of an id; empty for 0."""
    return config.robots[robot - 1] if robot else ""


def ref_in(config: DataConfig, uri: str, version: int, collections: tuple[str, ...] = ()) -> DatasetRef:
    """How a run names a dataset: with the cameras, robot and stride that it trained on it with, if it did."""
    known = next((ref for ref in config.datasets if ref.uri.rstrip("/") == uri.rstrip("/")), DatasetRef(uri=uri))
    return replace(known, uri=uri, version=version, collections=collections, weight=1.0)


def _planned(member: Member, config: DataConfig, ref: DatasetRef) -> Member:
    return changed(member, ref=ref, plan=action_plan(member.dataset.spec, ref, config))


def _robot(member: Member, robots: dict[str, Space | None]) -> str:
    """The name of a dataset's robot: the given one, that of another with the same actions, or the dataset's own."""
    action = member.plan.strides
    if member.ref.embodiment or action is None or not member.known_actions:
        return member.ref.embodiment
    alike = next((name for name, space in robots.items() if space == action), "")
    own = member.ref.uri.rstrip("/").rpartition("/")[2] or "robot"
    return alike or (own if own not in robots else f"{own}-{len(robots)}")


def _check_undeclared(members: Sequence[Member]) -> None:
    """Raises UserError when an undeclared run would take numbers that another dataset says the meaning of."""
    for member in members:
        if member.dataset.spec.action is not None and member.recorded_actions:
            raise UserError(
                f"{member.ref.uri} says what its actions mean, and the first dataset with actions does not: "
                "ingest that one again, or set data.action and leave it out"
            )
