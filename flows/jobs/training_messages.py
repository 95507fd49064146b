"""Events of a training process in words."""

from uwm.events import (
    CheckpointSaved,
    DatasetPlan,
    Encoding,
    Evaluated,
    TrainEvent,
    TrainFinished,
    TrainProgress,
    TrainStarted,
)


def describe(event: TrainEvent) -> str:
    """One line for a reader; of a run that starts one more for each dataset, of what becomes of it."""
    if isinstance(event, TrainStarted):
        return _started(event)
    if isinstance(event, Encoding):
        return f"{event.done:,} of {event.total:,} instructions of {event.dataset} are encoded"
    if isinstance(event, TrainProgress):
        return (
            f"step {event.step}/{event.steps}: loss {event.loss:.4f}, lr {event.lr:.2e}, "
            f"gradient {event.grad_norm:.3f}, {event.samples_per_second:.1f} samples/s, "
            f"waiting for data {event.data_wait:.0%}"
        )
    if isinstance(event, CheckpointSaved):
        return f"checkpoint of step {event.step}: {event.path}"
    if isinstance(event, Evaluated):
        means = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items() if name.endswith("_mse"))
        return f"step {event.step} on held-out {event.dataset}: {means}"
    if isinstance(event, TrainFinished):
        return f"{'was complete already' if event.reused else 'complete'} at step {event.step}: {event.path}"
    return f"stopped at step {event.step}; the same command goes on from {event.path}"


def _started(event: TrainStarted) -> str:
    data = ", ".join(f"{use.uri}@{use.version} ({use.weight:g})" for use in event.datasets)
    where = f"{event.processes} processes with {event.device}" if event.processes > 1 else event.device
    beyond = f"; {event.share_beyond:.1%} of the actions beyond the parent's range" if event.share_beyond else ""
    return (
        f"{event.name} ({event.stage}): {event.parameters / 1e6:.2f}M parameters on {where}, {event.precision}, "
        f"attention {event.attention}, from step {event.step} to {event.steps}, batch {event.batch_size}, "
        f"data {data}{beyond}" + "".join(f"\n  {plan.uri}@{plan.version}: {_facts(plan)}" for plan in event.plans)
    )


def _facts(plan: DatasetPlan) -> str:
    return "; ".join(f"{name} {text}" for name, text in plan.facts.items())
