"""Where a network runs, and in which precision."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from storage_schemas.errors import UserError

Precision = Literal["fp32", "bf16"]
DTYPES: Mapping[Precision, torch.dtype] = MappingProxyType({"fp32": torch.float32, "bf16": torch.bfloat16})
"""Types of weights by their names."""


def resolve_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA when there is one.

    Raises:
        UserError: when the name is no device, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(f"can't use device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that matrix products run in: `fp32`, `bf16`, or `auto`, which is bf16 on CUDA only."""
    if name == "bf16" or (name == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return torch.float32


def set_matmul(precision: str) -> None:
    """Let CUDA multiply float32 matrices in TF32 (`tf32`) or not (`fp32`), in the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Runs a forward pass in `dtype`; weights stay float32, so no gradient scaling is needed."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def cast_weights(policy: nn.Module, precision: Precision) -> None:
    """Change the type of a policy's weights for inference: bf16 halves what sampling reads.

    Samples stay float32 between the steps, and the frozen tokenizer, which is no child of the policy, keeps its type.
    """
    for part in policy.children():
        part.to(DTYPES[precision])
