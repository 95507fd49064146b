"""Instructions of a dataset: encoded once, drawn by a sample's place, lost by chance in training alone."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace as with_fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from storage_schemas.catalog.commits import commit
from storage_schemas.catalog.table import create_dataset
from storage_schemas.episode import Episode, SegmentId
from storage_schemas.errors import UserError
from storage_schemas.schema import DatasetSpec
from storage_schemas.store.dataset import Dataset, open_dataset
from storage_schemas.store.parts import write_part
from uwm.conditions import LanguageConfig
from uwm.data.sampler import Pick
from uwm.language import instructions
from uwm.language.encoder import load_encoder
from uwm.language.instructions import InstructionTable, encode_instructions, texts_of, with_encoder
from uwm.settings import replace

CPU = torch.device("cpu")
SAID = (("open", "close"), (), ("", "  push "), ("open", "open", "lift"))


@pytest.fixture
def dataset(tmp_path: Path, make_episode: Callable[..., Episode]) -> Dataset:
    """Four episodes with two instructions, none, one beside an empty one, and two of which one is said twice."""
    create_dataset(tmp_path / "store", DatasetSpec(cameras=("left", "wrist"), action_dim=3, val_percent=0))
    made = [make_episode(f"{number}", length=4, seed=number) for number in range(len(SAID))]
    told = [
        with_fields(episode, meta=with_fields(episode.meta, language=texts))
        for episode, texts in zip(made, SAID, strict=True)
    ]
    commit(tmp_path / "store", write_part(tmp_path / "store", told, run_id="test"))
    return open_dataset(tmp_path / "store")


@pytest.fixture
def config(clip_folder: Path) -> LanguageConfig:
    return with_encoder(LanguageConfig(kind="clip", path=str(clip_folder)))


def rows(dataset: Dataset) -> np.ndarray:
    return np.arange(len(dataset))


def hear(table: InstructionTable, episode: int, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    features, mask = torch.zeros(len(positions), 6), torch.zeros(len(positions), dtype=torch.bool)
    table.read([(row, Pick(place, 0, SegmentId(episode, 0))) for row, place in enumerate(positions)], features, mask)
    return features, mask


def test_texts_are_distinct_and_not_empty(dataset: Dataset) -> None:
    assert texts_of(dataset, rows(dataset)) == [("open", "close"), (), ("push",), ("open", "lift")]


def test_each_text_is_encoded_once(dataset: Dataset, config: LanguageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encoder = load_encoder(config)
    real = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: asked.extend(texts) or real(texts))
    told: list[tuple[int, int]] = []
    encode_instructions(dataset, rows(dataset)[:1], config, device=CPU, progress=lambda *done: told.append(done))
    encode_instructions(dataset, rows(dataset), config, device=CPU)
    encode_instructions(dataset, rows(dataset), config, device=CPU)
    assert asked == ["close", "open", "lift", "push"]
    assert told == [(0, 2), (2, 2)]


def test_what_was_killed_goes_on(dataset: Dataset, config: LanguageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "_CHUNK", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_instructions(dataset, rows(dataset), config, device=CPU, progress=stop)
    told: list[tuple[int, int]] = []
    encode_instructions(dataset, rows(dataset), config, device=CPU, progress=lambda *done: told.append(done))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_evaluation_hears_the_first(dataset: Dataset, config: LanguageConfig) -> None:
    encode_instructions(dataset, rows(dataset), config, device=CPU)
    lossy = replace(config, dropout=0.9)
    table = pickle.loads(pickle.dumps(InstructionTable(dataset, rows(dataset), lossy, None)))  # noqa: S301
    expected = load_encoder(config).encode(["open", "push", "open"])
    for episode, row in ((0, 0), (2, 1), (3, 2)):
        features, mask = hear(table, episode, range(20))
        assert mask.all()
        torch.testing.assert_close(features, expected[row].expand(20, -1))
    features, mask = hear(table, 1, range(20))
    assert not mask.any()
    assert not features.any()


def test_training_draws_one_by_the_samples_place(dataset: Dataset, config: LanguageConfig) -> None:
    encode_instructions(dataset, rows(dataset), config, device=CPU)
    table, again = (InstructionTable(dataset, rows(dataset)[::-1], config, seed) for seed in (3, 3))
    other = InstructionTable(dataset, rows(dataset), config, 4)
    features, mask = hear(table, 0, range(400))
    assert mask.all()
    opened = (features - load_encoder(config).encode(["open"])).abs().amax(1) < 1e-4
    assert 150 < int(opened.sum()) < 250
    torch.testing.assert_close(hear(again, 0, range(100, 400))[0], features[100:])
    assert not torch.equal(hear(other, 0, range(400))[0], features)


def test_instructions_are_lost_by_chance(dataset: Dataset, config: LanguageConfig) -> None:
    encode_instructions(dataset, rows(dataset), config, device=CPU)
    table = InstructionTable(dataset, rows(dataset), replace(config, dropout=0.25), 3)
    features, mask = hear(table, 2, range(2000))
    assert 0.2 < 1 - mask.float().mean() < 0.3
    assert not features[~mask].any()
    kept = hear(InstructionTable(dataset, rows(dataset), config, 3), 0, range(200))[0]
    fewer, heard = hear(table, 0, range(200))
    assert torch.equal(fewer[heard], kept[heard]), "what is heard does not depend on what is lost"


def test_what_is_not_encoded_or_by_another_encoder_is_refused(dataset: Dataset, config: LanguageConfig) -> None:
    with pytest.raises(UserError, match=r"the instruction '.*' is not encoded"):
        InstructionTable(dataset, rows(dataset), config, 0)
    with pytest.raises(UserError, match="another text encoder"):
        with_encoder(replace(config, identity="clip-other-", features=None))
