"""Which checkpoint of a track is the best one: write-once numbered decisions beside the lineage. Imports no prefect.

`<lineage root>/promotions/<track>/000001.json` is the first decision, and the current best is what the newest decision
that promoted something says. A file is never changed, so the whole history stays readable.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage_schemas.documents import read_document, write_document
from storage_schemas.errors import UserError, first_problem
from storage_schemas.lineage.records import safe_name
from storage_schemas.location import Location, locate
from uwm.eval.result import METRICS_OF, Estimate, Evaluation, Metric, ModeName

FOLDER = "promotions"
MAX_RACES = 100
"""Decisions that others may add while one is taken."""


MEASURES = tuple(f"{mode}/{metric}" for mode, metrics in METRICS_OF.items() for metric in metrics)
"""Every number that can decide, as the user writes it."""


class Record(BaseModel):
    """Base of what is written: immutable, an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Measure(Record):
    """The number that decides."""

    mode: ModeName
    metric: Metric
    margin: float = Field(2.0, ge=0, description="standard errors by which the better one must be better")

    @property
    def name(self) -> str:
        """As the user writes it."""
        return f"{self.mode}/{self.metric}"

    @classmethod
    def parse(cls, text: str, margin: float = 2.0) -> Self:
        """Read `mode/metric`, such as `inverse/action_mse`.

        Raises:
            UserError: when there is no such measure, or the margin makes no sense.
        """
        if text not in MEASURES:
            raise UserError(f"{text!r} is no measure: choose one of {', '.join(MEASURES)}")
        mode, _, metric = text.partition("/")
        try:
            return cls.model_validate({"mode": mode, "metric": metric, "margin": margin})
        except ValidationError as error:
            raise UserError(f"margin {margin}: {first_problem(error)[1]}") from error

    def of(self, evaluation: Evaluation) -> Estimate:
        """What an evaluation says of it.

        Raises:
            UserError: when it was not measured; says what was.
        """
        score = evaluation.score(self.mode, self.metric)
        if score is None:
            measured = ", ".join(dict.fromkeys(f"{item.mode}/{item.metric}" for item in evaluation.scores))
            raise UserError(f"the evaluation has no {self.name}: choose one of {measured or 'none'}")
        return score.model


class Contender(Record):
    """A checkpoint and what it reached."""

    checkpoint: str
    """Its node in the lineage."""
    uri: str
    identity: str
    evaluation: str
    """Node of the evaluation."""
    value: Estimate


class Decision(Record):
    """Whether a checkpoint became the best of its track, and why."""

    format: Literal[1] = 1
    track: str
    number: int = Field(ge=1)
    identity: str
    """Of the question: the same one is not decided twice."""
    promoted: bool
    reason: str
    measure: Measure
    candidate: Contender
    best: Contender | None
    """The best so far on the same data; None when the track had none."""
    dataset: str
    """Node of the dataset version that started it."""
    created: str
    run_url: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate and the best so far, measured alike."""

    candidate: Contender
    best: Contender | None
    """None when the track has none, or when it can't be measured any more."""
    lost: str = ""
    """Why the best so far can't be measured any more."""
    unlike: str = ""
    """Why the two can't be compared by this measure."""


def compare(measure: Measure, compared: Comparison) -> tuple[bool, str]:
    """Whether the candidate is better by more than the margin, and the reason in words.

    The error of the difference is that of two independent means. Both were measured on the same segments, which makes
    the true error smaller for models alike, so the test errs towards keeping the best there is.
    """
    candidate = compared.candidate.value
    if compared.best is None:
        before = f"{compared.lost}: the candidate takes its place" if compared.lost else "the track has no best yet"
        return True, f"{before}; {measure.name} {candidate.mean:.6g}"
    if compared.unlike:
        return False, compared.unlike
    best = compared.best.value
    gain = candidate.mean - best.mean if measure.metric.higher_is_better else best.mean - candidate.mean
    error = math.hypot(candidate.error, best.error)
    better = gain > measure.margin * error
    return better, (
        f"{measure.name} {candidate.mean:.6g} against {best.mean:.6g}: better by {gain:.3g} with a standard error of "
        f"{error:.2g}, {'more' if better else 'not more'} than {measure.margin:g} of them"
    )


class Track:
    """The decisions of one track.

    Args:
        root: folder of the lineage records.
        name: of the track.

    Raises:
        UserError: when the name can't be a folder's.
    """

    def __init__(self, root: str, name: str) -> None:
        if name != safe_name(name):
            raise UserError(f"{name!r} is no name of a track: use letters, digits, dots and dashes")
        self.name = name
        self._folder = locate(root) / FOLDER / name

    def decisions(self) -> list[Decision]:
        """All of them, oldest first. Raises UserError when one is damaged."""
        names = [name for name in self._folder.names() if re.fullmatch(r"\d{6}\.json", name)]
        return [_load(self._folder / name) for name in names]

    def best(self) -> Contender | None:
        """The current best."""
        return next((item.candidate for item in reversed(self.decisions()) if item.promoted), None)

    def decided(self, identity: str) -> Decision | None:
        """What was decided before on the same question."""
        return next((item for item in self.decisions() if item.identity == identity), None)

    def decide(
        self,
        identity: str,
        measure: Measure,
        contend: Callable[[Contender | None], Comparison],
        *,
        dataset: str,
        run_url: str = "",
    ) -> Decision:
        """Compare a candidate with the best and write down what follows, once for every question.

        A decision that someone else writes meanwhile may change what the best is; then the comparison is made again.

        Args:
            identity: of the question.
            measure: what counts.
            contend: measures the candidate and the best so far, if there is one, on the candidate's data.
            dataset: node of the dataset version that started it.
            run_url: the flow run.
        """
        for _ in range(MAX_RACES):
            if earlier := self.decided(identity):
                return earlier
            number = len(self.decisions()) + 1
            compared = contend(self.best())
            promoted, reason = compare(measure, compared)
            decision = Decision(
                track=self.name,
                number=number,
                identity=identity,
                promoted=promoted,
                reason=reason,
                measure=measure,
                candidate=compared.candidate,
                best=compared.best,
                dataset=dataset,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                run_url=run_url,
            )
            try:
                write_document(self._folder / f"{number:06d}.json", decision, exclusive=True)
            except FileExistsError:
                continue
            return decision
        raise UserError(f"others decide on {self.name} faster than this run can: try again")


def tracks(root: str) -> list[str]:
    """Names of all tracks under a lineage root."""
    return [name for name in (locate(root) / FOLDER).names() if name == safe_name(name)]


def _load(file: Location) -> Decision:
    return read_document(file, Decision)
