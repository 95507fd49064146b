"""The flow `pretrain_then_finetune`: two training runs and their evaluation, each a flow run of its own."""

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.refusal import refusing, settled
from flows.steps import Finetuned, Steps
from flows.steps import pretrain_then_finetune as carry_out
from flows.train import train


def as_flows() -> Steps:
    """The three jobs as flows; a user's mistake in one is raised here, as by the plain functions."""
    return Steps(ingest=settled(ingest), train=settled(train), evaluate=settled(evaluate))


@flow(name="pretrain-then-finetune", flow_run_name="{pretrain} then {finetune}")
@refusing
def pretrain_then_finetune(
    pretrain: str,
    finetune: str,
    overrides: tuple[str, ...] = (),
    evaluate_on: tuple[str, ...] = (),
    samples: int | None = None,
) -> Finetuned:
    """Pretrain one recipe, start another one from its last checkpoint, and evaluate both.

    Args:
        pretrain: recipe of the first run.
        finetune: recipe of the second run.
        overrides: key=value pairs for both runs; pretrain.key=value or finetune.key=value for one.
        evaluate_on: datasets on whose held-out episodes both are evaluated.
        samples: segments per evaluation.
    """
    return carry_out(as_flows(), pretrain, finetune, overrides=overrides, evaluate_on=evaluate_on, samples=samples)
