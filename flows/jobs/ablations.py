"""Ablation studies: every variant of a recipe, trained and evaluated alike. Imports no prefect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flows.jobs.pipeline import Jobs
from flows.jobs.train import adapted, make_config
from storage_schemas.location import locate
from uwm.eval.options import EvalOptions

LOG = "results.jsonl"
TABLE = "ablations.md"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study."""

    log: str
    """JSON lines, one per run: what it was and what it is worth."""
    table: str
    """The table as a markdown file."""
    lines: tuple[tuple[str, ...], ...]
    """The same table; the first line is the head."""
    runs: int
    reused: int
    """Runs that had been trained before."""


def run_ablations(
    jobs: Jobs,
    base: str,
    dataset: str,
    *,
    overrides: Sequence[str] = (),
    ablations: Sequence[str] = (),
    seeds: int = 3,
    out: str,
    samples: int = 64,
    tell: Callable[[str], None] = lambda line: None,
) -> Study:
    """Train a base recipe and its variants with several seeds, measure all on the same held-out segments.

    Runs go seed by seed, so a study that is stopped has all variants with equally many seeds, but for the last. Called
    again, with the same or more seeds or ablations, it goes on: what is trained and evaluated already is reused.

    Args:
        jobs: how training and evaluation are carried out.
        base: recipe that the variants are derived from.
        dataset: trained and evaluated on, first of the base's datasets.
        overrides: `key=value` pairs for all runs.
        ablations: names; all when empty.
        seeds: runs of each variant: `train.seed` is 0, 1 ...
        out: folder for runs, log and table.
        samples: held-out segments.
        tell: is told what is done next.

    Raises:
        UserError: when the recipe, an ablation, a setting or the dataset is not as it should be.
    """
    from storage_schemas import markdown
    from uwm.ablations import BASE, find_ablations, variants
    from uwm.preflight import check_evaluation, check_run
    from uwm.report.ablations import ResultsLog, Row, table
    from uwm.settings import replace

    options = EvalOptions(samples=samples)
    config = make_config(base, (f"data.datasets.0.uri={dataset}", *overrides))
    levels = variants(config, find_ablations(ablations))
    plan = {BASE: ((), config)} | {v.run: (v.level.settings, v.config) for v in levels if v.run != BASE}
    for _, variant in plan.values():
        check_run(variant)
        check_evaluation(variant, dataset, options)
    folder = locate(out)
    log = ResultsLog(folder / LOG)
    lines: tuple[tuple[str, ...], ...] = ()
    reused = 0
    for seed in range(seeds):
        for number, (run, (settings, variant)) in enumerate(plan.items(), 1):
            tell(f"seed {seed}, run {number} of {len(plan)}: {run}")
            name = f"{base.replace('_', '-')}-{run}-seed-{seed}"
            own = {"name": name, "output": (folder / "runs" / name).uri}
            trained = jobs.train(adapted(variant, **own, train=replace(variant.train, seed=seed)))
            evaluated = jobs.evaluate(trained.path, dataset, options)
            log.add(Row.of(run, seed, settings, evaluated.evaluation, evaluated.folder))
            lines = table(levels, log.rows())
            (folder / TABLE).write_bytes(markdown.table(lines[0], lines[1:]).encode())
            reused += trained.reused
    return Study(log=(folder / LOG).uri, table=(folder / TABLE).uri, lines=lines, runs=seeds * len(plan), reused=reused)
