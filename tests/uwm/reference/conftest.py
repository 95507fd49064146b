"""Files such as the published trainer writes, made of the golden weights."""

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from uwm.model.obs_encoder import ResNet18GN

ACTION_SCALE = np.array([0.5, 1.0, 2.0, 0.0, 0.25], np.float32)
ACTION_OFFSET = np.array([0.1, 0.0, -1.0, 3.0, 0.0], np.float32)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module with the published normalizer's name, gone before anything is read."""
    module = types.ModuleType("datasets.utils.normalizer")

    class LinearNormalizer:
        def __init__(self, scale: np.ndarray, offset: np.ndarray) -> None:
            self.scale, self.offset = scale, offset

    class NestedDictLinearNormalizer(dict):  # type: ignore[type-arg]
        pass

    for kind in (LinearNormalizer, NestedDictLinearNormalizer):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    for name in ("datasets", "datasets.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    assert module.__name__ not in sys.modules or sys.modules[module.__name__] is module


@pytest.fixture(scope="session")
def golden_params(golden_root: Path) -> Callable[[str], dict[str, Tensor]]:
    """A function that gives a golden network's state dict."""

    def params(name: str) -> dict[str, Tensor]:
        found = load_file(golden_root / f"{name}.safetensors")
        return {key.removeprefix("param."): value for key, value in found.items() if key.startswith("param.")}

    return params


@pytest.fixture
def settings() -> tuple[str, ...]:
    """What the golden weights do not tell."""
    return ("policy.num_heads=4", "data.action_horizon=4", "data.cameras=left,wrist")


@pytest.fixture(scope="session")
def vae() -> nn.Module:
    """A small VAE of SDXL's class that shrinks by 8, as its does."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )


@pytest.fixture(scope="session")
def state(golden_params: Callable[[str], dict[str, Tensor]], vae: nn.Module) -> dict[str, Tensor]:
    """The state dict of a published UWM with the golden transformer and features for 2 views x 2 frames."""
    torch.manual_seed(0)
    found = {f"noise_pred_net.{name}": value for name, value in golden_params("uwm").items()}
    found |= {f"obs_encoder.img_encoder.model.{name}": value for name, value in ResNet18GN(6).state_dict().items()}
    found |= {f"obs_encoder.vae.vae.{name}": value for name, value in vae.state_dict().items()}
    found["obs_encoder.vae.shift"] = torch.zeros(1, 4, 1, 1)
    found["obs_encoder.vae.scale"] = torch.full((1, 4, 1, 1), 3.0)
    return found


@pytest.fixture
def content(state: dict[str, Tensor], foreign: types.ModuleType) -> dict[str, Any]:
    """What the published trainer gives to `torch.save`."""
    from collections import OrderedDict

    weights = OrderedDict(state)
    weights._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    nested = foreign.NestedDictLinearNormalizer()
    nested["position"] = foreign.LinearNormalizer(np.ones(3), np.zeros(3))
    moment = {"step": torch.tensor(7.0), "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)}
    return {
        "model": weights,
        "optimizer": {"state": {0: moment}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95), "params": [0]}]},
        "scheduler": {"last_epoch": 12, "base_lrs": [np.float64(1e-4)], "lr_lambdas": [None]},
        "scaler": {},
        "action_normalizer": foreign.LinearNormalizer(ACTION_SCALE, ACTION_OFFSET),
        "lowdim_normalizer": nested,
        "step": 12,
    }


@pytest.fixture
def baseline(
    golden_params: Callable[[str], dict[str, Tensor]], state: dict[str, Tensor]
) -> Callable[[str], dict[str, Any]]:
    """A function that gives the weights of a published PAD or DP as the trainer saves them."""
    images = "obs_encoder.img_encoder.model."

    def make(name: str) -> dict[str, Any]:
        weights = {f"noise_pred_net.{key}": value for key, value in golden_params(name).items()}
        if name == "dp":
            encoder = {key.removeprefix(images): value for key, value in state.items() if key.startswith(images)}
            weights |= {f"obs_encoder.rgb_encoder.{key}": value for key, value in encoder.items()}
        else:
            weights |= {key: value for key, value in state.items() if key.startswith("obs_encoder.vae.")}
        return {"model": weights}

    return make


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that saves a checkpoint file; afterwards the foreign module can't be imported."""

    def save(content: object, *, legacy: bool = False) -> Path:
        path = tmp_path / "models.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        monkeypatch.setitem(sys.modules, "datasets", None)  # an import of it raises
        monkeypatch.delitem(sys.modules, "datasets.utils.normalizer", raising=False)
        return path

    return save
