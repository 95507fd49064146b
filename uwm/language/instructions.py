"""What the episodes of a dataset are told to do, as features: computed once, drawn for each sample.

Letters: n texts, E features of a text, B samples of a batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.errors import UserError
from storage_schemas.location import Location
from storage_schemas.store.dataset import Dataset
from storage_schemas.store.language import add_features, language_folder, load_features
from uwm.conditions import LanguageConfig, same_encoder
from uwm.data.sampler import Pick, unit_draw
from uwm.language.encoder import TextEncoder, load_encoder
from uwm.settings import replace

_CHUNK = 1024
"""Texts that are encoded before they are written down: so much a killed encoding loses."""
_CHOICE, _DROPOUT = 1, 2

Progress = Callable[[int, int], None]
"""Told how many texts are done, and of how many."""


def texts_of(dataset: Dataset, rows: NDArray[np.int64]) -> list[tuple[str, ...]]:
    """The distinct instructions of some episodes, each in the order of its source; empty ones are none."""
    column = dataset.episodes.column("language")
    return [
        tuple(dict.fromkeys(text.strip() for text in column[row] or () if text and text.strip()))
        for row in rows.tolist()
    ]


def opened_encoder(config: LanguageConfig) -> TextEncoder:
    """The encoder of a configuration.

    Raises:
        UserError: when it can't be loaded, or is another one than a run has been trained with.
    """
    encoder = load_encoder(config)
    if not same_encoder(config.identity, encoder.identity):
        raise UserError(
            f"{config.source} is another text encoder ({encoder.identity}) than the run was trained with "
            f"({config.identity}): set data.language.path to that one"
        )
    return encoder


def with_encoder(config: LanguageConfig) -> LanguageConfig:
    """The configuration with what follows from its encoder filled in. Raises UserError as `opened_encoder`."""
    if not config.is_heard or _is_known(config):
        return config
    encoder = opened_encoder(config)
    return replace(config, identity=encoder.identity, features=encoder.features)


def _is_known(config: LanguageConfig) -> bool:
    return config.features is not None and config.identity is not None and not config.identity.endswith("-")


def encode_instructions(
    dataset: Dataset,
    rows: NDArray[np.int64],
    config: LanguageConfig,
    *,
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> None:
    """Encode and keep beside the dataset what is not there yet of some episodes' instructions.

    Killed and started again it goes on; two at once do some work twice and agree all the same.

    Args:
        dataset: a dataset version.
        rows: the episodes.
        config: from `with_encoder`.
        device: where to encode.
        progress: called before the first text, and after some.

    Raises:
        UserError: when the encoder can't be loaded, or the features can't be written.
    """
    folder = _folder(dataset, config)
    wanted = dict.fromkeys(text for texts in texts_of(dataset, rows) for text in texts)
    known = load_features(folder, config.width) if wanted else {}
    missing = sorted(set(wanted) - set(known))
    if not missing:
        return
    encoder = opened_encoder(config).to(device)
    for start in range(0, len(missing), _CHUNK):
        progress(start, len(missing))
        texts = missing[start : start + _CHUNK]
        add_features(folder, texts, encoder.encode(texts).numpy())
    progress(len(missing), len(missing))


class InstructionTable:
    """Features of the instructions of some episodes in shared memory, and which a sample hears. Picklable.

    Args:
        dataset: whose instructions are encoded.
        rows: the episodes.
        config: from `with_encoder`.
        seed: of the run: by its place in the order a sample hears one of its episode's instructions, or loses it.
            None is for evaluation: always the first, and none is lost.

    Raises:
        UserError: when one is not encoded.
    """

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64], config: LanguageConfig, seed: int | None) -> None:
        self._seed = seed
        self._dropout = 0.0 if seed is None else config.dropout
        each = texts_of(dataset, rows)
        places = {text: place for place, text in enumerate(sorted({text for texts in each for text in texts}))}
        known = load_features(_folder(dataset, config), config.width) if places else {}
        if missing := next((text for text in places if text not in known), None):
            raise UserError(f"{dataset.uri}: the instruction {missing[:80]!r} is not encoded: start the run again")
        values = np.stack([known[text] for text in places]) if places else np.zeros((0, config.width), np.float32)
        self._features = torch.from_numpy(values).share_memory_()  # type: ignore[no-untyped-call]
        counts = np.zeros(len(dataset.episodes), np.int64)
        counts[rows] = [len(texts) for texts in each]
        self._ends = np.cumsum(counts)
        order = np.argsort(rows, kind="stable").tolist()
        self._places = np.array([places[text] for number in order for text in each[number]], np.int64)

    def read(self, picks: Sequence[tuple[int, Pick]], features: Tensor, mask: Tensor) -> None:
        """Fill in what samples hear.

        Args:
            picks: (row of the batch, which sample), all of this dataset.
            features: (B, E) zeros.
            mask: (B,) False; stays so where there is no instruction.
        """
        heard = [(row, place) for row, pick in picks if (place := self._place(pick)) is not None]
        if heard:
            rows, places = (torch.tensor(numbers) for numbers in zip(*heard, strict=True))
            features[rows] = self._features[places]
            mask[rows] = True

    def _place(self, pick: Pick) -> int | None:
        """The place of a sample's instruction among the features."""
        episode, seed = pick.segment.episode, self._seed
        first = int(self._ends[episode - 1]) if episode else 0
        count = int(self._ends[episode]) - first
        if not count or (
            self._dropout and seed is not None and unit_draw(seed, pick.position, _DROPOUT) < self._dropout
        ):
            return None
        chosen = 0 if seed is None or count == 1 else int(unit_draw(seed, pick.position, _CHOICE) * count)
        return int(self._places[first + chosen])


def _folder(dataset: Dataset, config: LanguageConfig) -> Location:
    return language_folder(dataset.location, config.identity or "")
