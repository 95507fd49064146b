"""Attention: its numbers against the formula, and proof of the kernel that computes them."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from uwm.model.attention import Attention, attention_op, key_mask

CPU = torch.device("cpu")
FUSED_ON_CPU = "aten::_scaled_dot_product_flash_attention_for_cpu"


def tokens(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 37, 48, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_it_equals_the_formula() -> None:
    torch.manual_seed(0)
    attention, x = Attention(48, 4), tokens()
    query, key, value = attention.qkv(x).view(2, 37, 3, 4, 12).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) / 12**0.5).softmax(-1)
    expected = attention.proj((weights @ value).transpose(1, 2).reshape(2, 37, 48))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


KEYS = key_mask((torch.tensor([[True], [False]]), 5), (torch.tensor([[True, False], [True, True]]), 16))
"""Two samples: an action chunk of 5 tokens, unknown in the second; two views of 16, one unknown in the first."""


def test_key_mask_is_by_group() -> None:
    assert KEYS.shape == (2, 37)
    assert KEYS[0].tolist() == [True] * 5 + [True] * 16 + [False] * 16
    assert KEYS[1].tolist() == [False] * 5 + [True] * 32


def test_masked_it_equals_attention_over_what_is_left() -> None:
    torch.manual_seed(0)
    attention, x = Attention(48, 4), tokens()
    masked = attention(x, KEYS)
    for sample, keys in enumerate(KEYS):
        left = attention(x[sample : sample + 1, keys])
        torch.testing.assert_close(masked[sample : sample + 1, keys], left, atol=1e-6, rtol=1e-5)
    other = x.masked_fill(~KEYS[..., None], 7.0)
    torch.testing.assert_close(attention(other, KEYS)[KEYS], masked[KEYS], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("keys", [None, KEYS], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_profiler_sees_the_fused_kernel_forward_and_backward(dtype: torch.dtype, keys: torch.Tensor | None) -> None:
    attention = Attention(48, 4).to(dtype)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        attention(tokens(dtype), keys).sum().backward()
    ops = {event.key for event in seen.key_averages()}
    assert FUSED_ON_CPU in ops
    assert FUSED_ON_CPU + "_backward" in ops
    assert not any("attention_math" in op for op in ops)
    assert attention_op(CPU, dtype, num_heads=4, head_dim=12, tokens=37) in ops


def test_the_backend_is_what_really_runs() -> None:
    size = {"num_heads": 4, "head_dim": 12, "tokens": 37}
    assert "_flash_attention" in attention_op(CPU, torch.float32, **size)
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_op(CPU, torch.float32, **size).endswith("_attention_math")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_runs_a_fused_kernel() -> None:
    found = attention_op(torch.device("cuda"), torch.bfloat16, num_heads=12, head_dim=64, tokens=171)
    assert not found.endswith("_attention_math")
