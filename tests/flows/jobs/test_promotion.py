import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import run
from flows.jobs.promotion import Comparison, Contender, Decision, Measure, Track, compare, tracks
from storage_schemas.errors import UserError
from uwm.eval.result import Estimate

ERROR = Measure.parse("inverse/action_mse", margin=2)


def estimate(mean: float, error: float = 0.1) -> Estimate:
    return Estimate(mean=mean, error=error, count=10)


def contender(name: str, mean: float, error: float = 0.1) -> Contender:
    return Contender(
        checkpoint=f"checkpoint/{name}@1",
        uri=f"runs/{name}",
        identity=name,
        evaluation=f"evaluation/{name}@1",
        value=estimate(mean, error),
    )


def against(candidate: Contender) -> Callable[[Contender | None], Comparison]:
    """A comparison with the best so far as it was measured before."""
    return lambda best: Comparison(candidate=candidate, best=best)


def verdict(measure: Measure, candidate: Estimate, best: Estimate | None) -> tuple[bool, str]:
    other = contender("best", 0).model_copy(update={"value": best}) if best else None
    return compare(
        measure, Comparison(candidate=contender("new", 0).model_copy(update={"value": candidate}), best=other)
    )


def decide(track: Track, name: str, mean: float) -> Decision:
    return track.decide(name, ERROR, against(contender(name, mean)), dataset="stores/droid@1")


@pytest.mark.parametrize(
    ("measure", "candidate", "best", "promoted"),
    [
        ("inverse/action_mse", 1.0, 2.0, True),
        ("inverse/action_mse", 2.0, 1.0, False),
        ("forward/psnr", 2.0, 1.0, True),
        ("forward/psnr", 1.0, 2.0, False),
        ("inverse/action_mse", 1.0, 1.2, False),  # within two standard errors of the difference, 0.28
        ("inverse/action_mse", 1.0, 1.0, False),
    ],
)
def test_only_what_is_clearly_better_is_promoted(measure: str, candidate: float, best: float, promoted: bool) -> None:
    found, reason = verdict(Measure.parse(measure), estimate(candidate), estimate(best))
    assert found is promoted
    assert measure in reason


def test_the_first_of_a_track_is_promoted() -> None:
    assert verdict(ERROR, estimate(1.0), None)[0]


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5))
def test_of_two_models_at_most_one_is_better(a: float, b: float, ea: float, eb: float, margin: float) -> None:
    measure = Measure.parse("video/latent_mse", margin)
    one, other = estimate(a, ea), estimate(b, eb)
    assert not (verdict(measure, one, other)[0] and verdict(measure, other, one)[0])


def test_decisions_are_numbered_and_the_best_is_what_the_newest_promotion_says(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    assert track.best() is None
    outcomes = [decide(track, *item).promoted for item in (("a", 3.0), ("b", 2.0), ("c", 2.1), ("d", 1.0))]
    assert outcomes == [True, True, False, True]
    assert [item.number for item in track.decisions()] == [1, 2, 3, 4]
    assert track.best() == contender("d", 1.0)
    assert track.decisions()[2].best == contender("b", 2.0)
    assert tracks(str(tmp_path)) == ["policy"]


def test_the_same_question_is_decided_once(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    first = decide(track, "a", 3.0)
    assert decide(track, "a", 1.0) == first
    assert len(track.decisions()) == 1


def test_a_best_that_changes_meanwhile_is_compared_with_again(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    decide(track, "a", 3.0)
    measured = []

    def contend(best: Contender | None) -> Comparison:
        if not measured:
            decide(Track(str(tmp_path), "policy"), "rival", 1.0)
        measured.append(best.checkpoint if best else "")
        return Comparison(candidate=contender("b", 2.0), best=best)

    late = track.decide("b", ERROR, contend, dataset="stores/droid@1")
    assert measured == ["checkpoint/a@1", "checkpoint/rival@1"]
    assert not late.promoted
    assert late.number == 3


def test_the_best_so_far_counts_as_it_was_measured_again(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    decide(track, "a", 1.0)

    worse_on_new_data = contender("a", 5.0)
    late = track.decide(
        "b",
        ERROR,
        lambda best: Comparison(candidate=contender("b", 2.0), best=worse_on_new_data),
        dataset="stores/droid@2",
    )
    assert late.promoted
    assert late.best == worse_on_new_data


def test_a_best_that_is_gone_is_named_and_replaced(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    decide(track, "a", 1.0)
    lost = Comparison(
        candidate=contender("b", 2.0), best=None, lost="checkpoint/a@1, the best so far, is gone (deleted)"
    )
    late = track.decide("b", ERROR, lambda best: lost, dataset="stores/droid@2")
    assert late.promoted
    assert late.reason.startswith("checkpoint/a@1, the best so far, is gone (deleted): the candidate takes its place")
    assert track.best() == contender("b", 2.0)


def test_what_can_not_be_compared_is_not_promoted(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    decide(track, "a", 2.0)
    unlike = Comparison(candidate=contender("b", 1.0), best=contender("a", 2.0), unlike="other latents")
    late = track.decide("b", ERROR, lambda best: unlike, dataset="stores/droid@2")
    assert (late.promoted, late.reason) == (False, "other latents")


@pytest.mark.parametrize("text", ["action_mse", "inverse/accuracy", "dream/psnr", ""])
def test_a_measure_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no measure"):
        Measure.parse(text)


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden"])
def test_a_track_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name of a track"):
        Track(str(tmp_path), name)


def test_a_damaged_decision_is_named(tmp_path: Path) -> None:
    track = Track(str(tmp_path), "policy")
    decide(track, "a", 1.0)
    (tmp_path / "promotions" / "policy" / "000001.json").write_text("{}")
    with pytest.raises(UserError, match=r"000001\.json is damaged"):
        track.best()


def test_the_command_shows_the_best_and_every_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = Track(str(tmp_path), "policy")
    for name, mean in (("a", 2.0), ("b", 3.0)):
        decide(track, name, mean)
    assert run(["promoted", "--root", str(tmp_path)]) == 0
    assert "policy: checkpoint/a@1, runs/a" in capsys.readouterr().out
    assert run(["promoted", "policy", "--root", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1: checkpoint/a@1 promoted")
    assert second.startswith("2: checkpoint/b@1 not promoted")
    assert run(["promoted", "policy", "--root", str(tmp_path), "--json"]) == 0
    assert [item["promoted"] for item in json.loads(capsys.readouterr().out)] == [True, False]
    assert run(["promoted", "other", "--root", str(tmp_path)]) == 2
    assert "there is policy" in capsys.readouterr().err
