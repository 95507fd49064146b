"""The model card of a checkpoint: what it is, what it saw, how it does, in Hugging Face's form."""

import json
from collections.abc import Iterable, Sequence

from uwm.checkpoint import Checkpoint
from uwm.config import Embodiment
from uwm.data.normalize import ActionNormalizer
from uwm.eval.result import Evaluation
from uwm.report.tables import markdown_table


def model_card(
    checkpoint: Checkpoint, weights: str, evaluations: Sequence[Evaluation] = (), *, licence: str = ""
) -> str:
    """Markdown with front matter; every line of it comes from the checkpoint or from an evaluation.

    Args:
        checkpoint: that the card is about.
        weights: `ema` or `raw`, which ones go with the card.
        evaluations: whose tables are shown.
        licence: SPDX name; empty says that there is none yet.
    """
    sections = (
        _front_matter(checkpoint, licence),
        _head(checkpoint, weights),
        _section("Use", _use(checkpoint)),
        _section("Data", _data(checkpoint)),
        _section("Training", _training(checkpoint)),
        _section("Evaluation", _evaluation(evaluations)),
        _section("Limits", _limits(checkpoint, evaluations)),
    )
    return "\n".join(sections)


def _front_matter(checkpoint: Checkpoint, licence: str) -> str:
    fields = {
        "license": licence or "other",
        "library_name": "uwm-pipeline",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "imitation-learning", *checkpoint.config.policy.tags],
        "datasets": sorted({use.uri.rstrip("/").rpartition("/")[2] for use in checkpoint.state.datasets}),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value]  # JSON is YAML
    return "\n".join(["---", *lines, "---", ""])


def _head(checkpoint: Checkpoint, weights: str) -> str:
    state, policy = checkpoint.state, checkpoint.config.policy
    kind = "averaged" if weights == "ema" else "last"
    size = f"; {policy.size}" if policy.size else ""
    return (
        f"# {state.name}\n\n{policy.about}\n\n"
        f"Checkpoint `{checkpoint.identity[:12]}`, step {state.step:,}, {kind} weights{size}.\n"
    )


def _use(checkpoint: Checkpoint) -> str:
    data = checkpoint.config.data
    cameras = ", ".join(f'"{camera}": frames' for camera in data.cameras)
    states = ", ".join(f'"{state.name}": numbers' for state in data.states)
    told = (f", states={{{states}}}" if states else "") + (', instruction="..."' if data.language.is_heard else "")
    return (
        "```python\nfrom uwm.auto import AutoPolicy\n\n"
        'policy = AutoPolicy.load("path/of/this/folder")\n'
        f"actions = policy.act({{{cameras}}}{told})\n"
        f"# {data.action_horizon, data.action_dim} in the data's units\n```\n\n"
        f"`frames` is uint8 ({data.obs_frames}, height, width, 3), the oldest first; a camera that is left out counts "
        "as absent." + "".join(f"\n{line}" for line in _told(checkpoint))
    )


def _told(checkpoint: Checkpoint) -> Iterable[str]:
    """What it takes beside images."""
    data = checkpoint.config.data
    for state in data.states if data.states else ():
        yield f"\n- state `{state.name}`, {state.dim} numbers: {'; '.join(state.space.lines if state.space else ())}"
    if data.language.is_heard:
        yield f"\n- instructions, by the text encoder `{data.language.source}` (`{data.language.identity}`)"


def _data(checkpoint: Checkpoint) -> str:
    state = checkpoint.state
    lines = [
        f"- `{use.uri}` version {use.version} (log `{use.table_id[:8]}`): {use.episodes:,} episodes, "
        f"{use.segments:,} segments, {use.action_steps:,} steps with actions, weight {use.weight:g}"
        + (f", only {', '.join(use.collections)}" if use.collections else "")
        for use in state.datasets
    ]
    if state.source:
        lines.append(f"- imported from `{state.source.path}` (sha256 `{state.source.identity[:12]}`)")
    if state.parent:
        lines.append(f"- weights started from `{state.parent.path}` (`{state.parent.identity[:12]}`)")
    if state.tokenizer_checkpoint:
        origin = state.tokenizer_checkpoint
        lines.append(f"- latents of the tokenizer `{origin.path}` (`{origin.identity[:12]}`)")
    space, normalizer = checkpoint.config.data.action, checkpoint.normalizer
    lines += [f"- action {line}" for line in space.lines] if space else []
    lines += [f"- robot `{robot.name}`: {_robot(robot)}" for robot in checkpoint.config.data.embodiments]
    lines.append(f"- actions: {_actions(normalizer)}")
    lines += [f"- actions of `{name}`: {_actions(own)}" for name, own in normalizer.robots.items()]
    return "\n".join(lines)


def _robot(robot: Embodiment) -> str:
    """What the numbers of a robot's own actions mean."""
    if robot.action is None:
        return "its actions are not declared"
    rate = f" at {robot.action.rate:g} Hz" if robot.action.rate else ""
    return "; ".join(robot.action.lines) + rate


def _actions(normalizer: ActionNormalizer) -> str:
    if not normalizer.count:
        return "none were known"
    bounds = zip(normalizer.low, normalizer.high, strict=True)
    return f"{normalizer.scale} bounds " + ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in bounds)


def _training(checkpoint: Checkpoint) -> str:
    state, config = checkpoint.state, checkpoint.config
    if state.source:
        return f"Trained elsewhere, to step {state.step:,}; the imported file does not tell how."
    lines = [
        f"- stage {state.stage}, {state.step:,} of {config.train.steps:,} steps of "
        f"{state.batch or config.train.batch_size} samples, "
        f"seed {state.seed}",
        f"- AdamW {config.optim.lr:g}, {config.optim.schedule}, weight decay {config.optim.weight_decay:g}, "
        f"average {config.optim.ema_decay:g}",
        f"- code `{state.code_revision}`",
        *(f"- {name.replace('_', ' ')} at the end: {value:.4g}" for name, value in state.metrics.items()),
    ]
    return "\n".join(lines)


def _evaluation(evaluations: Sequence[Evaluation]) -> str:
    return "\n".join(_result(evaluation) for evaluation in evaluations) or "None was given to the export."


def _result(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    return (
        f"`{settings.dataset_uri}` version {settings.dataset_version}, split {settings.split}: {evaluation.segments} "
        f"segments of {evaluation.episodes} episodes, step {settings.step}.\n\n{markdown_table(evaluation)}"
    )


def _limits(checkpoint: Checkpoint, evaluations: Sequence[Evaluation]) -> str:
    return "\n".join(f"- {line}" for line in _limit_lines(checkpoint, evaluations))


def _limit_lines(checkpoint: Checkpoint, evaluations: Sequence[Evaluation]) -> Iterable[str]:
    data = checkpoint.config.data
    if not data.states:
        yield "It observes no state of the robot" + (", only images." if not data.language.is_heard else ".")
    if not data.language.is_heard:
        yield "It hears no instructions."
    yield "Actions are in the units and the frame of the data above; another robot needs finetuning."
    if not evaluations:
        yield "Nothing is said here of how well it does."
    elif all(evaluation.settings.checkpoint_identity != checkpoint.identity for evaluation in evaluations):
        yield "The evaluations above are of another checkpoint than this one."
    yield "Offline errors do not tell success on a robot."


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}\n"
