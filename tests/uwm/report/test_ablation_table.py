from pathlib import Path

import pytest

from storage_schemas.errors import UserError
from storage_schemas.location import locate
from uwm.ablations import find_ablations, variants
from uwm.eval.result import Evaluation, Metric
from uwm.recipes import get_recipe
from uwm.report.ablations import Measured, ResultsLog, Row, table

FORWARD = "forward dynamics, latent MSE ↓"


@pytest.fixture
def row(evaluation: Evaluation) -> Row:
    return Row.of("base", 0, (), evaluation, "runs/x/evaluations/y")


def test_a_row_holds_the_headline_errors(row: Row, evaluation: Evaluation) -> None:
    score = evaluation.score("forward", Metric.LATENT_MSE)
    assert score
    assert row.value("forward", Metric.LATENT_MSE) == score.model.mean
    assert row.value("policy", Metric.ACTION_MSE) is None


def test_the_log_keeps_rows_in_order_and_each_once(tmp_path: Path, row: Row) -> None:
    log = ResultsLog(locate(tmp_path / "study" / "results.jsonl"))
    other = row.model_copy(update={"seed": 1})
    assert log.rows() == ()
    for new in (row, other, row):
        log.add(new)
    assert log.rows() == (row, other)


def test_another_file_is_no_log_and_stays_as_it_is(tmp_path: Path, row: Row) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"seed": 0}\n')
    with pytest.raises(UserError, match="no log of ablations"):
        ResultsLog(locate(path)).add(row)
    assert path.read_text() == '{"seed": 0}\n'


def test_the_table_has_mean_and_standard_error_over_seeds(row: Row) -> None:
    def reaches(run: str, seed: int, value: float) -> Row:
        measured = (Measured(mode="forward", metric=Metric.LATENT_MSE, value=value),)
        return row.model_copy(update={"run": run, "seed": seed, "measured": measured})

    rows = [reaches("base", 0, 9.0), reaches("base", 1, 0.2), reaches("base", 2, 0.6), reaches("base", 0, 0.4)]
    rows.append(reaches("registers-0", 0, 0.5))
    found = variants(get_recipe("uwm"), find_ablations(["registers", "token-dropout"]))
    head, *lines = table(found, rows)
    cells = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in lines}

    assert cells["base", ""][FORWARD] == "0.40 ± 0.12"  # deviation 0.2 over the root of 3; a seed counts once, its last
    assert cells["registers", "8 (base)"] == cells["base", ""] | {
        "ablation": "registers",
        "level": "8 (base)",
        "origin": "both",
    }
    assert (cells["registers", "0"]["seeds"], cells["registers", "0"][FORWARD]) == ("1", "0.500")
    assert (cells["token-dropout", "0.2"]["seeds"], cells["token-dropout", "0.2"][FORWARD]) == ("0", "")
