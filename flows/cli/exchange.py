"""Commands that bring checkpoints in and out: import-reference, export."""

from typing import Annotated

import typer

from flows.cli.console import say, say_json
from flows.cli.data import AsJson


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("import-reference")(import_reference)


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
    from flows.exchange import run_import

    made = run_import(file, out, tuple(overrides or ()))
    if json:
        say_json({**vars(made.imported), "node": made.record.node})
        return 0
    say(f"{made.record.node} is imported: {made.imported.path}")
    say(f"published {made.imported.policy}, {made.imported.parameters:,} parameters, step {made.imported.step}")
    for name, value in made.imported.assumed.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        say(f"assumed, as the file does not tell: {name}={text}")
    return 0
