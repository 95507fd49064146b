"""How a run is optimized, how long and how much at once."""

from typing import Literal, Self

from pydantic import Field, model_validator

from uwm.settings import Beta, Changeable, Seed, Settings


class OptimConfig(Settings):
    """AdamW with linear warm-up, then cosine decay to zero or a constant rate."""

    implementation: Literal["fused", "foreach"] = Field(
        "fused", description="of the same update: one pass over the weights, or torch's default (published)"
    )
    lr: float = Field(1e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(
        1e-8, gt=0, description="added to the root of Adam's second moment: gradients far below it make no step"
    )
    weight_decay: float = Field(1e-6, ge=0, description="on all parameters, as published")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(1000, ge=0)
    decay_steps: Changeable[int] = Field(
        0, ge=0, description="step at which cosine reaches zero; 0 is the run's last step"
    )
    clip_norm: float = Field(1.0, gt=0, description="bound of the gradient's norm")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0 keeps no average")


class TrainConfig(Settings):
    """How long, how much at once, and how often to look and to save."""

    steps: Changeable[int] = Field(100_000, gt=0)
    batch_size: Changeable[int] = Field(36, gt=0, description="samples per process and step")
    accumulate: Changeable[int] = Field(1, gt=0, description="batches of each process whose gradients make one step")
    seed: Seed = 0
    device: Changeable[str] = Field("auto", description="auto takes CUDA when there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto is bf16 on CUDA, fp32 on the CPU")
    matmul: Changeable[Literal["tf32", "fp32"]] = Field(
        "tf32", description="CUDA's products of float32 matrices outside of bf16; published: fp32"
    )
    sync: Changeable[Literal["report", "step"]] = Field(
        "report", description="copy the losses to the host when they are reported, or in every step (published)"
    )
    compile: Changeable[Literal["off", "default", "reduce-overhead"]] = Field(
        "off", description="torch.compile of the transformer; reduce-overhead replays CUDA graphs; for CUDA"
    )
    log_every: Changeable[int] = Field(20, gt=0)
    save_every: Changeable[int] = Field(2000, gt=0)
    keep: Changeable[int] = Field(3, gt=0, description="checkpoints kept, besides the last")
    threads: Changeable[int] = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")
    processes: Changeable[int] = Field(
        1, gt=0, description="processes on this machine, one per GPU; more than 1 go through torchrun"
    )
    machines: Changeable[int] = Field(1, gt=0, description="machines that the same command is started on")
    rendezvous: Changeable[str] = Field("", description="host:port of one of them, where all meet; empty on one")
    restarts: Changeable[int] = Field(
        3, ge=0, description="how often processes that died are started again, from the checkpoint"
    )
    parallel: Changeable[Literal["ddp", "fsdp"]] = Field(
        "ddp", description="how several processes share a model: each has all of it, or a shard (FSDP2)"
    )
    replicas: Changeable[int] = Field(
        1, gt=0, description="fsdp: how many times the shards make up the model; as many as machines is HSDP"
    )
    checkpoint_activations: Changeable[bool] = Field(
        False, description="compute the blocks' activations again in the backward pass: less memory, a third more work"
    )
    spike_limit: Changeable[float] = Field(
        20.0, ge=0, description="robust deviations above the recent median at which a loss stops the run; 0 never"
    )
    spike_window: Changeable[int] = Field(
        200, ge=20, description="steps whose losses a loss is compared with; it starts empty when a run goes on"
    )
    track: Changeable[tuple[Literal["tensorboard", "wandb", "mlflow"], ...]] = Field(
        ("tensorboard",), description="who else is told how it goes; metrics.jsonl always is"
    )
    eval_every: Changeable[int] = Field(
        0, ge=0, description="steps between evaluations on held-out episodes, each of a checkpoint; 0 does none"
    )
    eval_samples: Changeable[int] = Field(16, gt=0, description="segments of each dataset that it predicts")

    @model_validator(mode="after")
    def _graphs_keep_no_gradient(self) -> Self:
        if self.compile == "reduce-overhead" and self.accumulate > 1:  # pytorch/pytorch#169545
            raise ValueError(
                "a CUDA graph overwrites the gradients of the batch before: with accumulate, compile=default"
            )
        return self
