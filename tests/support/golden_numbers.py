"""What the golden tests share: sizes, tensors and the tolerance."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from uwm.config import PolicyConfig

TOLERANCE = 1e-5
_SETTINGS = {"patch_shape": "patch"}
"""Published name of a size -> its setting, where they differ."""


def sizes(root: Path, name: str) -> dict[str, Any]:
    """A network's constructor arguments of `config.json`, lists as tuples."""
    found = json.loads((root / "config.json").read_text())[name]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def build(network: type[nn.Module], settings: type[PolicyConfig], sizes: dict[str, Any]) -> nn.Module:
    """A network of the published sizes: those that are settings, and the shapes beside them."""
    named = {_SETTINGS.get(name, name): value for name, value in sizes.items()}
    own = {name: value for name, value in named.items() if name in settings.model_fields}
    return network(settings(**own), **{name: value for name, value in named.items() if name not in own})


def tensors(root: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a network's file."""
    return load_file(root / f"{name}.safetensors")


def load_params(network: nn.Module, golden: dict[str, Tensor]) -> None:
    """Load `param.*`, every name of which must be the network's, and the other way."""
    params = {key.removeprefix("param."): value for key, value in golden.items() if key.startswith("param.")}
    network.load_state_dict(params, strict=True)
    network.eval()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal to the tolerance of the golden numbers."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def assert_all_compared(golden: dict[str, Tensor], compared: Iterable[str]) -> None:
    """Every tensor that is neither a parameter nor an input is among the compared ones."""
    outputs = {key for key in golden if not key.startswith(("param.", "io_"))}
    assert outputs == set(compared)
