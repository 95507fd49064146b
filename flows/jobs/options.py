"""What a job can be told beside what `pipelines.options` and `uwm.eval.options` declare."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.runtime.task_runners import Runner, RunnerName, choose
from storage_schemas.errors import UserError

Hours = Annotated[float, Field(gt=0, le=24 * 366, allow_inf_nan=False)]
"""Most hours of a training run."""
Pair = Annotated[str, Field(pattern=r"^[^=\s]+=")]
"""A setting as key=value."""


class RunnerOptions(BaseModel):
    """What carries out the task runs of a flow."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    runner: RunnerName | None = Field(
        None, description="who does the task runs: threads, processes or dask; threads by default."
    )
    workers: int | None = Field(
        None, ge=1, description="task runs at once; by default one thread, or a process per core."
    )
    cluster: str | None = Field(None, description="a Dask cluster that runs already: tcp://HOST:8786.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        try:
            self.choose()
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    def choose(self) -> Runner:
        """The runner that is meant."""
        return choose(self.runner, self.workers, self.cluster)


RUNNER_DEFAULTS = RunnerOptions()


class LatentsOptions(BaseModel):
    """How the datasets of a run are encoded."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    variants: int = Field(1, ge=1, description="augmented variants of every frame.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of the variants.")
    batch_episodes: int = Field(64, ge=1, description="episodes per task run, at least.")


LATENTS_DEFAULTS = LatentsOptions()
