"""Jobs that consist of other jobs, whoever carries those out: plain functions, or Prefect flows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flows.jobs.evaluate import Evaluated
from flows.jobs.ingest import Ingested, pin_dataset
from flows.jobs.train import Trained, make_config
from storage_schemas.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the three jobs are carried out; the functions have the parameters of `flows.jobs`."""

    ingest: Callable[..., Ingested]
    train: Callable[..., Trained]
    evaluate: Callable[..., Evaluated]


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """A pretrained and a finetuned checkpoint and what they are worth."""

    pretrained: Trained
    finetuned: Trained
    evaluations: tuple[Evaluated, ...]


def pretrain_then_finetune(
    steps: Steps,
    pretrain: str,
    finetune: str,
    *,
    overrides: Sequence[str] = (),
    evaluate_on: Sequence[str] = (),
    samples: int | None = None,
) -> Finetuned:
    """Pretrain one recipe, start another one from its last checkpoint, and evaluate both.

    Args:
        steps: how training and evaluation are carried out.
        pretrain: recipe of the first run.
        finetune: recipe of the second run, which starts from the first's last checkpoint.
        overrides: `key=value` pairs for both runs; with `pretrain.` or `finetune.` before the key for one.
        evaluate_on: datasets on whose held-out episodes both checkpoints are evaluated.
        samples: segments per evaluation; None leaves it to the evaluation.

    Raises:
        UserError: when a recipe, a field or a dataset is not as it should be.
    """
    for stage, recipe in (("pretrain", pretrain), ("finetune", finetune)):
        make_config(recipe, overrides_of(stage, overrides))  # a mistake shows before the first run, not after it
    for store in evaluate_on:
        pin_dataset(store)
    first = steps.train(pretrain, overrides_of("pretrain", overrides))
    second = steps.train(finetune, (*overrides_of("finetune", overrides), f"init_from={first.path}"))
    options = {} if samples is None else {"samples": samples}
    evaluations = [
        steps.evaluate(trained.path, store, **options) for store in evaluate_on for trained in (first, second)
    ]
    return Finetuned(pretrained=first, finetuned=second, evaluations=tuple(evaluations))


def overrides_of(stage: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that one of the two runs gets.

    Raises:
        UserError: when one is not of the form key=value.
    """
    found = []
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise UserError(f"{item!r} is not of the form key=value, such as train.steps=100")
        head, _, rest = item.partition(".")
        if head not in ("pretrain", "finetune"):
            found.append(item)
        elif head == stage:
            found.append(rest)
    return tuple(found)
