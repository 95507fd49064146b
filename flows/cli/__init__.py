"""The console command `uwm`. Heavy libraries are imported by the command that needs them, not here."""

import sys
from collections.abc import Sequence

try:
    import typer

    from flows.cli import bench, browse, checkpoints, datasets, demo, evaluation, ingest, lineage, operate, training
    from flows.cli.console import Interrupted, complain
    from flows.cli.options import expanded
    from flows.runtime.child_process import stop_signals_exit
    from storage_schemas.errors import UserError
except KeyboardInterrupt:  # nothing was begun
    raise SystemExit(130) from None

_INTERRUPTED = 130
"""What typer makes of a Ctrl-C that a command has no words for."""

app = typer.Typer(
    name="uwm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Unified World Models as a data-centric pipeline: from raw robot data and video to an evaluated model.",
    epilog="Start with: uwm demo",
)
for commands in (ingest, datasets, browse, training, evaluation, checkpoints, lineage, operate, demo):
    for command in commands.COMMANDS:
        app.command(command.__name__.replace("_", "-"))(expanded(command))
app.add_typer(bench.bench, name="bench")


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code.

    A user's mistake ends as one line on stderr and code 2, Ctrl-C as one that says what is kept and code 130.
    """
    try:
        with stop_signals_exit():
            result = app(args=list(arguments), prog_name="uwm", standalone_mode=False)
    except UserError as error:
        return complain(str(error))
    except typer.TyperException as error:
        return complain(f"{error.format_message()} (see `uwm --help`)", error.exit_code)
    except Interrupted as stop:
        return complain(f"interrupted: {stop}", _INTERRUPTED)
    except (typer.Abort, KeyboardInterrupt):
        result = _INTERRUPTED
    if result == _INTERRUPTED:
        complain("interrupted")
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the console command."""
    raise SystemExit(run(sys.argv[1:]))
