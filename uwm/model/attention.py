"""The one attention of the project, and the proof of which kernel runs it.

Dimension letters: B batch, L tokens, D features, n heads, d features of a head (D = n d).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_OP_PREFIX = "aten::_scaled_dot_product_"


class Attention(nn.Module):
    """Multi-head self-attention by `F.scaled_dot_product_attention`, over all tokens or over those that are keys.

    No dropout and no mask with a gradient: either makes the CPU fall back to the unfused kernel.

    Args:
        dim: D, features of a token.
        num_heads: n, must divide `dim`.
        qkv_bias: whether the joint query, key, value projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: (B, L, D).
            keys: (B, L) bool: tokens that may be attended to, at least one in each sample; None is all of them.

        Returns:
            (B, L, D); where `keys` is false too, for such a token still attends.
        """
        mask = None if keys is None else keys[:, None, None]  # (B, 1, 1, L)
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1)  # (B, L, 3, n, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # 3 x (B, n, L, d)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, n, L, d)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))  # (B, L, D)
        return out


def attention_op(
    device: torch.device, dtype: torch.dtype, *, num_heads: int, head_dim: int, tokens: int, masked: bool = False
) -> str:
    """The operator that attention of this size really dispatches to in training, found by running one sample.

    Args:
        device: where the model runs.
        dtype: of queries, keys and values (the autocast type when there is one).
        num_heads: n.
        head_dim: d.
        tokens: L.
        masked: with a mask of keys.

    Returns:
        An operator name such as `aten::_scaled_dot_product_flash_attention_for_cpu`.
    """
    qkv = torch.zeros(3, 1, num_heads, tokens, head_dim, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(1, 1, 1, tokens, device=device, dtype=torch.bool) if masked else None
    with _RecordOps() as record:
        F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask)
    return next((name for name in record.names if name.startswith(_OP_PREFIX)), _OP_PREFIX + "attention_math")


def attention_backend(device: torch.device, dtype: torch.dtype, *, num_heads: int, head_dim: int, tokens: int) -> str:
    """The kernel family behind `attention_op`: flash, efficient, cudnn, fused, or math."""
    op = attention_op(device, dtype, num_heads=num_heads, head_dim=head_dim, tokens=tokens)
    kernel = op.removeprefix(_OP_PREFIX)
    return "math" if kernel == "attention_math" else kernel.split("_attention")[0]


def attention_report(weight: Tensor, *, num_heads: int, tokens: int, masked: bool = False) -> str:
    """The operator that attention runs, with device and type, for the run log; asked where the network will run.

    Args:
        weight: (..., D) a parameter of the network.
        num_heads: n.
        tokens: L.
        masked: with a mask of keys.
    """
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    size = {"num_heads": num_heads, "head_dim": weight.shape[-1] // num_heads, "tokens": tokens}
    op = attention_op(weight.device, dtype, masked=masked, **size)
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
