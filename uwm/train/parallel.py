"""One model over several processes: DDP, FSDP2, both (HSDP), and activation checkpointing.

The networks know nothing of it. Whatever divides a step's samples, its gradient is the mean of its micro-batches'
gradients (see `uwm.data.batch.MicroBatch`), so all ways give the weights of one process with the whole batch, up to
rounding.

References: Li et al. 2020 (DDP, arXiv 2006.15704), Zhao et al. 2023 (FSDP, arXiv 2304.11277), Chen et al. 2016
(activation checkpointing, arXiv 1604.06174).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from storage_schemas.errors import UserError
from uwm.data.batch import Batch
from uwm.policy import Learner, LossOutput
from uwm.train.distributed import World
from uwm.training_config import TrainConfig


class _Loss(nn.Module):
    """Makes a learner's loss a forward pass, which is where DDP and FSDP come in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, LossOutput]:
        output = cast(Learner, self.model).loss(batch, generator)
        return output.loss, output  # the loss also by itself: DDP and FSDP look for it in tuples


class Engine:
    """The loss of a model whose gradients the processes bring together.

    Args:
        forward: of `_Loss`, with or without hooks.
        hold: makes a context in which gradients stay in this process.
    """

    def __init__(self, forward: nn.Module, hold: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._forward = forward
        self._hold = hold

    def loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """The loss of a batch, see `Learner.loss`."""
        passed: tuple[Tensor, LossOutput] = self._forward(batch, generator)
        loss, output = passed
        return replace(output, loss=loss)

    def reducing(self, now: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch: without `now` its gradients wait for a later one's."""
        return nullcontext() if now else self._hold()


def parallelize(
    model: nn.Module, config: TrainConfig, world: World, device: torch.device, dtype: torch.dtype
) -> Engine:
    """Prepare a model for training, alone or with others; its parameters may become shards of what they were.

    What is sharded and recomputed one by one are the entries of the outermost `nn.ModuleList`s: the blocks.

    Args:
        model: a learner with the same weights in every process, on `device`.
        config: how.
        world: this process and the others.
        device: of this process.
        dtype: that matrix products run in; FSDP gathers blocks that hold nothing else in it.

    Raises:
        UserError: when the processes can't be divided into `config.replicas` equal groups.
    """
    blocks = list(_blocks(model))
    if config.checkpoint_activations:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    forward = _Loss(model)
    if world.size == 1:
        return Engine(forward)
    if config.parallel == "fsdp":
        return _fsdp(forward, blocks, _mesh(config, world, device), dtype)
    return _ddp(forward, device)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


def _ddp(forward: _Loss, device: torch.device) -> Engine:
    wrapped = DistributedDataParallel(
        forward,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # no buffer of a policy changes in training
        gradient_as_bucket_view=True,
    )
    return Engine(wrapped, wrapped.no_sync)


def _fsdp(forward: _Loss, blocks: list[nn.Module], mesh: DeviceMesh, dtype: torch.dtype) -> Engine:
    """Blocks of nothing but matrix products are gathered in the precision of these, all else as it is.

    Their inputs stay as they are: autocast goes on deciding what runs in which precision, as in one process.
    """
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    reduced = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=reduced if _multiplies(block) else plain)
    # last: it takes the parameters that no block has taken
    root: FSDPModule = fully_shard(forward, mesh=mesh, mp_policy=plain)

    @contextmanager
    def hold() -> Iterator[None]:
        root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            root.set_requires_gradient_sync(True)

    return Engine(forward, hold)


def _multiplies(block: nn.Module) -> bool:
    """Whether only matrix products read a block's weights, so that autocast rounds them all."""
    owners = [module for module in block.modules() if any(True for _ in module.parameters(recurse=False))]
    return all(isinstance(module, nn.Linear | _ConvNd) for module in owners)


def _mesh(config: TrainConfig, world: World, device: torch.device) -> DeviceMesh:
    """All processes as one group of shards, or as `replicas` groups that hold the model once each (HSDP)."""
    if world.size % config.replicas:
        raise UserError(f"{world.size} processes are not divisible by train.replicas={config.replicas}")
    if config.replicas == 1:
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    sizes = (config.replicas, world.size // config.replicas)
    return init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process may hold a shard, whole; all processes ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as a parameter of the same shape is; nothing is sent."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def clip_gradients(parameters: list[nn.Parameter], bound: float) -> Tensor:
    """Scale the gradients so that their norm over all processes is at most `bound`; returns the norm before."""
    # of shards the norm is a tensor in pieces itself, which all processes put together
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, bound, norm)
    return norm
