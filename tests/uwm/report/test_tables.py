import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwm.eval.result import Estimate, Evaluation
from uwm.report.tables import headline_rows, markdown_table, number, score_rows, with_error


@given(st.floats(-1e12, 1e12, allow_nan=False))
def test_number_keeps_three_digits(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=5.1e-3, abs=1e-300)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.012345, "0.0123"), (123.456, "123"), (99999.0, "99999"), (1e-7, "1.00e-07")]
)
def test_number_reads_well(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [(0.12345, 0.0123, "0.123 ± 0.012 dB"), (24.13, 0.29, "24.13 ± 0.29 dB"), (5.0, 0.0, "5.00 dB")],
)
def test_error_and_mean_end_at_the_same_place(mean: float, error: float, text: str) -> None:
    assert with_error(Estimate(mean=mean, error=error, count=3), "dB") == text


def test_rows_say_who_wins(evaluation: Evaluation) -> None:
    rows = score_rows(evaluation)
    assert [row.mark for row in rows] == ["▲", "▼", "≈"]
    assert [row.change for row in rows] == ["+50 ± 0 %", "−2.00 ± 0.00 dB", "+0 ± 0 %"]
    assert [row.arrow for row in rows] == ["↓", "↑", "↓"]


def test_headlines_leave_a_gap_where_nothing_was_measured(evaluation: Evaluation) -> None:
    less = evaluation.model_copy(update={"scores": evaluation.scores[:1]})
    rows = headline_rows([evaluation, less])
    assert [row.label for row in rows] == [
        "forward dynamics, latent MSE",
        "forward dynamics, PSNR",
        "inverse dynamics, action MSE",
    ]
    assert [[cell is not None for cell in row.cells] for row in rows] == [[True, True], [True, False], [True, False]]
    assert headline_rows([]) == ()


def test_markdown_has_a_line_per_score(evaluation: Evaluation) -> None:
    lines = markdown_table(evaluation).splitlines()
    assert len(lines) == 2 + len(evaluation.scores)
    assert len({line.count("|") for line in lines}) == 1
