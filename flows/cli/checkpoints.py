"""Commands that bring checkpoints in and out: import-reference, export."""

from typing import Annotated

import typer

from flows.cli.console import say, say_json
from flows.cli.options import AsJson, Checkpoint


def import_reference(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What the published trainer wrote, such as models.pt.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the run that it becomes.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE ...]", help="What the file does not tell: data.cameras=left,wrist"),
    ] = None,
    json: AsJson = False,
) -> int:
    """Turn a published UWM checkpoint into a checkpoint directory; nothing in the file is run.

    The file is a pickle that names classes of other code. It is read as data: those classes are neither needed nor
    imported, and whatever else it names is refused. Sizes come from the weights, the rest from the recipe uwm_paper
    or from KEY=VALUE; what was assumed is printed. The VAE in the file becomes the run's tokenizer.

    Example: uwm import-reference models.pt runs/published data.cameras=agentview,wrist
    """
    from flows.jobs.import_export import run_import

    result = run_import(file, out, tuple(overrides or ()))
    if json:
        say_json({**vars(result.imported), "node": result.record.node})
        return 0
    say(f"{result.record.node} is imported: {result.imported.path}")
    say(f"published {result.imported.policy}, {result.imported.parameters:,} parameters, step {result.imported.step}")
    for name, value in result.imported.assumed.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        say(f"assumed, as the file does not tell: {name}={text}")
    return 0


def export(
    checkpoint: Checkpoint,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the bundle; must not exist.")],
    dtype: Annotated[str, typer.Option(help="Of the weights on disk: fp32, or bf16 at half the size.")] = "fp32",
    licence: Annotated[
        str, typer.Option("--license", help="SPDX name for the model card, such as Apache-2.0; the data decide it.")
    ] = "",
    json: AsJson = False,
) -> int:
    """Write an inference bundle: weights, tokenizer, configuration, normalizer, model card, checksums.

    The weights are the averaged ones when the run keeps an average. The card shows the evaluations that `uwm evaluate`
    made of this very checkpoint. `AutoPolicy.load(OUT)` opens it (docs/inference.md).

    Example: uwm export runs/uwm-finetune bundles/uwm-finetune --dtype bf16
    """
    from flows.jobs.import_export import run_export

    result = run_export(checkpoint, out, dtype=dtype, licence=licence)
    if json:
        say_json({"path": result.path, "evaluations": result.evaluations, **result.manifest.model_dump(mode="json")})
        return 0
    say(f"{result.manifest.name} at step {result.manifest.step} is exported: {result.path}")
    if not result.evaluations:
        say("its card has no results: make some with `uwm evaluate` and export again")
    return 0


COMMANDS = (import_reference, export)
