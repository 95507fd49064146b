"""The flow `evaluate`: a checkpoint and held-out episodes become numbers."""

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.jobs.evaluate import Evaluated, run_evaluation
from flows.lineage.pages import slug
from flows.publish import publish_lineage
from flows.runtime.gpu_slots import gpu_slot
from flows.runtime.user_errors import as_function, failing_on_user_error
from uwm.eval.options import EVAL_DEFAULTS, EvalOptions
from uwm.report.tables import markdown_table


@task(name="evaluate checkpoint", cache_policy=NO_CACHE)
@failing_on_user_error
def evaluate_checkpoint(checkpoint: str, store: str, options: EvalOptions, run_url: str) -> Evaluated:
    """Measure all modes of a checkpoint against the trivial baselines."""
    result = run_evaluation(checkpoint, store, options, run_url=run_url)
    get_run_logger().info("%s: %s", "made before" if result.reused else "written", result.folder)
    return result


@flow(name="evaluate", flow_run_name="evaluate {checkpoint} on {store}")
@failing_on_user_error
def evaluate(checkpoint: str, store: str, options: EvalOptions = EVAL_DEFAULTS) -> Evaluated:
    """Measure a checkpoint in all modes it has against trivial baselines.

    Args:
        checkpoint: folder of a run, or of one of its checkpoints.
        store: dataset, a folder or URI.
        options: on what it is asked, and how it samples.
    """
    with gpu_slot():
        result = as_function(evaluate_checkpoint)(checkpoint, store, options, flow_run.ui_url or "")
    create_markdown_artifact(
        markdown_table(result.evaluation), key=f"result-{slug(result.record.node)}", description=result.record.node
    )
    publish_lineage(result.root, [result.record.node])
    return result
