"""The one attention of the project, and the proof of which kernel runs it.

Dimension letters: B batch, L tokens, D features, n heads, d features of a head (D = n d).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from storage_schemas.errors import UserError
from uwm.policies import Kernel, TransformerConfig

_BACKENDS: Mapping[Kernel, SDPBackend] = MappingProxyType(
    {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
)
_OP_PREFIX = "aten::_scaled_dot_product_"


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or over those that a mask leaves, by SDPA.

    No dropout, and no mask that needs a gradient: either makes the CPU fall back to the unfused kernel.

    Args:
        dim: D, features of a token.
        num_heads: n, must divide `dim`.
        qkv_bias: whether the joint query, key, value projection has a bias.
        kernel: `auto` leaves the choice to torch, any other runs or is an error.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel = kernel
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: (B, L, D).
            keys: (B, L) bool, the tokens that others and they themselves may look at; None is all. At least one
                in every sample. `key_mask` makes it from what is known of each modality and view.

        Returns:
            (B, L, D).
        """
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1)  # (B, L, 3, n, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # 3 x (B, n, L, d)
        mask = None if keys is None else keys[:, None, None]  # (B, 1, 1, L), the same for every query
        with _only(self.kernel):
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, n, L, d)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # (B, L, D)
        return out


def key_mask(*groups: tuple[Tensor, int]) -> Tensor:
    """Which tokens may be looked at, from runs of tokens that are known or unknown together.

    Args:
        groups: in the order of the sequence, (B, g) bool and the tokens of each of the g members: one member for
            an action chunk, one per view for patches, one that is always known for registers.

    Returns:
        (B, L) bool.
    """
    return torch.cat([known.repeat_interleave(tokens, dim=1) for known, tokens in groups], dim=1)


def attention_op(
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_heads: int,
    head_dim: int,
    tokens: int,
    kernel: Kernel = "auto",
    masked: bool = False,
) -> str:
    """The operator that attention of this size really dispatches to in training, found by running one sample.

    Args:
        device: where the model runs.
        dtype: of queries, keys and values (the autocast type when there is one).
        num_heads: n.
        head_dim: d.
        tokens: L.
        kernel: the one that is asked for.
        masked: with a key mask.

    Returns:
        An operator name such as `aten::_scaled_dot_product_flash_attention_for_cpu`.

    Raises:
        UserError: when the kernel does not run here at this size.
    """
    qkv = torch.zeros(3, 1, num_heads, tokens, head_dim, device=device, dtype=dtype, requires_grad=True)
    keys = torch.ones(1, 1, 1, tokens, device=device, dtype=torch.bool) if masked else None
    with _RecordOps() as record, _only(kernel):
        try:
            F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=keys)
        except RuntimeError as error:
            raise UserError(
                f"policy.attention={kernel} does not run on {device} in {str(dtype).removeprefix('torch.')} with heads "
                f"of {head_dim} features{' and a mask' if masked else ''}: set it to auto"
            ) from error
    return next((name for name in record.names if name.startswith(_OP_PREFIX)), _OP_PREFIX + "attention_math")


def _only(kernel: Kernel) -> AbstractContextManager[object]:
    return nullcontext() if kernel == "auto" else sdpa_kernel(_BACKENDS[kernel])


def attention_report(config: TransformerConfig, weight: Tensor, *, tokens: int, masked: bool = False) -> str:
    """The operator that attention runs, with device and type, for the run log; asked where the network will run.

    Args:
        config: heads and the kernel that is asked for.
        weight: (..., D) a parameter of the network.
        tokens: L.
        masked: with a key mask.

    Raises:
        UserError: when the kernel does not run here at this size.
    """
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    op = attention_op(
        weight.device,
        dtype,
        num_heads=config.num_heads,
        head_dim=weight.shape[-1] // config.num_heads,
        tokens=tokens,
        kernel=config.attention,
        masked=masked,
    )
    return f"{op} on {weight.device}, {str(dtype).removeprefix('torch.')}"


class _RecordOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that reach a backend; the profiler would do, but writes to the console."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.name())  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
