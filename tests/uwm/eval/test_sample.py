import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage_schemas.errors import UserError
from storage_schemas.store.dataset import open_dataset
from uwm.config import RunConfig
from uwm.eval.options import SampleOptions
from uwm.eval.sample import parse_mode, sample
from uwm.policy import Mode
from uwm.train.trainer import train


def test_every_mode_writes_strips_and_actions(
    make_store: Callable[..., str], debug_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    store = make_store(lengths=(12, 9, 2, 14, 20, 8), val=50)
    checkpoint = str(train(debug_run(store, "train.steps=1")))
    dataset, options = open_dataset(store), SampleOptions(samples=2, seed=3)
    for mode in Mode:
        files = sample(checkpoint, dataset, mode.value, str(tmp_path / mode.value), options)
        assert len(files.strips) == 2
        columns = 2 if mode in (Mode.POLICY, Mode.INVERSE) else 3
        for strip in files.strips:
            with Image.open(strip) as image:
                assert image.size == (4 + columns * (24 + 4), 4 + 2 * (16 + 4))
        content = json.loads(Path(files.actions).read_text())
        assert content["mode"] == mode.value
        for record in content["segments"]:
            assert np.shape(record["true"]) == (4, 3)
            predicts = mode not in (Mode.FORWARD, Mode.VIDEO)
            assert np.shape(record["predicted"] or []) == ((4, 3) if predicts else (0,))
    again = sample(checkpoint, dataset, "joint", str(tmp_path / "again"), options)
    assert Path(again.strips[0]).read_bytes() == (tmp_path / "joint" / Path(again.strips[0]).name).read_bytes()


def test_an_unknown_mode_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="policy, forward, inverse, video, joint"):
        parse_mode("dream")
