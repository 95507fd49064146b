"""Encode the datasets of a run ahead of its training."""

from collections.abc import Callable

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.data.latents import EncodeReport, encode
from uwm.data.mixture import open_member
from uwm.device import resolve_device, resolve_precision
from uwm.model.tokenizer import load_tokenizer
from uwm.train.resume import resolve_paths


def encode_run(
    config: RunConfig,
    *,
    variants: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[EncodeReport, ...]:
    """Encode every dataset of a run, training and held-out episodes, with the run's tokenizer and settings.

    Raises:
        UserError: when data or tokenizer are missing, or as `encode`.
    """
    if not config.data.datasets:
        raise UserError("the run names no dataset: set data.datasets.0.uri=<store>")
    config = resolve_paths(config)
    device = resolve_device(config.train.device)
    dtype = resolve_precision(config.train.precision, device)
    tokenizer = load_tokenizer(config.tokenizer).to(device)
    members = [open_member(ref, config.data, split=None) for ref in config.data.datasets]
    return tuple(
        encode(
            member,
            config.data,
            tokenizer,
            variants=variants,
            seed=seed,
            device=device,
            dtype=dtype,
            progress=progress,
        )
        for member in members
    )
