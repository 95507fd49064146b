"""What published checkpoints hold, and under which names: facts about them, as data.

A checkpoint is a dict with the state dict `model`, the step, states of optimizer and schedule, and two normalizers
of a class of its own. The state dict also holds the frozen VAE and, of a network that hears language, all of CLIP.
Names of the networks are those of this house below another prefix, so importing renames, and for DP sorts one set of
columns.

The condition is [features of the images, states (frame by frame, the fields sorted by name), a linear map of CLIP's
text features]; UWM and DP have the last two when they were trained with `use_low_dim` and `use_language`.

Sizes that the weights tell are taken from them; the rest is the recipe's (`ASSUMED`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from storage_schemas.errors import UserError
from uwm.config import RunConfig
from uwm.policies import DpConfig
from uwm.reference.condition import told

NETWORK = "noise_pred_net."
VAE = "obs_encoder.vae."
CLIP = "obs_encoder.text_encoder.language_model."
FROZEN = (VAE, CLIP)
HEAD = {"obs_encoder.text_encoder.head.": "condition.head."}
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before names."""
EMA_KEYS = ("ema", "ema_model", "model_ema")
ASSUMED = (
    "policy.num_heads",
    "data.action_horizon",
    "data.obs_frames",
    "data.next_frames",
    "data.cameras",
    "data.crop",
)
"""Settings that weights don't tell, or not alone."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One published network.

    Attributes:
        policy: its name.
        mark: a name that only this network has.
        prefixes: published prefix -> prefix here; every name begins with one of them.
        action_in: first layer of the actions.
        timestep_out: last bias of the timestep embedding.
        frame_major: whether the condition's image features are ordered (frame, view) instead of (view, frame).
    """

    policy: str
    mark: str
    prefixes: Mapping[str, str]
    action_in: str = "action_encoder.0.weight"
    timestep_out: str = "timestep_embedding.proj.2.bias"
    frame_major: bool = False


LAYOUTS = (
    Layout(
        policy="uwm",
        mark="registers",
        prefixes={NETWORK: "transformer.", "obs_encoder.img_encoder.": "obs_encoder."} | HEAD,
    ),
    Layout(policy="pad", mark="pad_tokens", prefixes={NETWORK: "transformer."}),
    Layout(
        policy="dp",
        mark="input_encoder.0.weight",
        prefixes={NETWORK: "transformer.", "obs_encoder.rgb_encoder.": "obs_encoder.model."} | HEAD,
        action_in="input_encoder.0.weight",
        timestep_out="timestep_encoder.3.bias",
        frame_major=True,
    ),
)
ENCODERS = {"obs_encoder.model.conv1.weight": "resnet18gn", "obs_encoder.model.class_token": "vit_b_32"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint, taken apart."""

    layout: Layout
    step: int
    weights: dict[str, Tensor]
    """The trained network's, under this house's names."""
    ema: dict[str, Tensor]
    """Averaged weights; empty when there are none."""
    vae: dict[str, Tensor]
    """The frozen VAE's under its own names, with `shift` and `scale` of its latents; empty when there is none."""
    clip: dict[str, Tensor]
    """The frozen CLIP's under its own names; empty when it hears no language."""
    action_normalizer: object
    """See `uwm.reference.normalizers`; so is the next."""
    state_normalizer: object


def take_apart(root: object) -> Published:
    """Find the parts of a checkpoint.

    Raises:
        UserError: when it is none of the published networks, or has weights that none of them has.
    """
    if not isinstance(root, dict):
        raise UserError("no checkpoint: it holds no dict")
    state = _tensors(root.get("model", root))
    layout = next((layout for layout in LAYOUTS if NETWORK + layout.mark in state), None)
    if layout is None:
        marks = ", ".join(f"{layout.policy} ({NETWORK}{layout.mark})" for layout in LAYOUTS)
        raise UserError(f"no published network: none of {marks} is among its weights")
    ema = next((_tensors(root[key]) for key in EMA_KEYS if isinstance(root.get(key), dict)), {})
    step = root.get("step")
    return Published(
        layout=layout,
        step=step if isinstance(step, int) and step >= 0 else 0,
        weights=renamed(layout, state),
        ema=renamed(layout, ema),
        vae={name.removeprefix(VAE): value for name, value in state.items() if name.startswith(VAE)},
        clip={name.removeprefix(CLIP): value for name, value in state.items() if name.startswith(CLIP)},
        action_normalizer=root.get("action_normalizer"),
        state_normalizer=root.get("lowdim_normalizer"),
    )


def _tensors(state: object) -> dict[str, Tensor]:
    """A state dict's tensors, without the names of wrappers."""
    if not isinstance(state, dict):
        return {}
    tensors = {str(key): value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    for wrapper in WRAPPERS:
        tensors = {key.removeprefix(wrapper).replace(f".{wrapper}", "."): value for key, value in tensors.items()}
    return tensors


def renamed(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under this house's names, without the frozen parts.

    Raises:
        UserError: when a name belongs to no part of the network; names the first few.
    """
    weights, unknown = {}, []
    for name, value in state.items():
        prefix = next((prefix for prefix in layout.prefixes if name.startswith(prefix)), None)
        if prefix is not None:
            weights[layout.prefixes[prefix] + name.removeprefix(prefix)] = value
        elif not name.startswith(FROZEN):
            unknown.append(name)
    if unknown:
        raise UserError(
            f"weights that the published {layout.policy} does not have ({len(unknown)}): {', '.join(unknown[:3])}"
        )
    return weights


def sizes(published: Published, base: RunConfig) -> dict[str, object]:
    """The settings that the weights tell, by dotted name.

    Args:
        published: the checkpoint.
        base: gives what they don't tell (`ASSUMED`).

    Raises:
        UserError: when they contradict what is assumed; says which setting to give.
    """
    layout, weights = published.layout, published.weights
    shapes = {name.removeprefix("transformer."): value.shape for name, value in weights.items()}
    try:
        tokens, width = shapes["pos_embed"][1:]
        timestep = shapes[layout.timestep_out][0]
        condition = shapes["blocks.0.adaLN_modulation.1.weight"][1] - timestep
        settings: dict[str, object] = {
            "data.action_dim": shapes[layout.action_in][1],
            "policy.embed_dim": width,
            "policy.mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
            "policy.timestep_embed_dim": timestep,
            "policy.depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            "policy.qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        }
        if "registers" in shapes:
            settings["policy.num_registers"] = shapes["registers"][1]
        if "obs_patchifier.patch_encoder.weight" in shapes:
            settings["policy.patch"] = shapes["obs_patchifier.patch_encoder.weight"][2:]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"not the published {layout.policy}: its weights lack {error}") from error
    steps = tokens if "obs_patchifier.patch_encoder.weight" not in shapes else base.data.action_horizon
    steps = shapes["pad_tokens"][1] if "pad_tokens" in shapes else steps
    settings["data.action_horizon"] = steps
    views = len(base.data.cameras)
    features = 0
    if condition:
        kind, features = _encoder(weights)
        settings |= {"policy.obs_encoder.kind": kind, "policy.obs_encoder.embed_dim": features}
    settings |= told(weights, published.state_normalizer, condition, features, base)
    if "policy.patch" in settings:
        patches = tokens - shapes.get("registers", (0, 0))[1] - steps
        settings["data.crop"] = _crop(patches, views, shapes["obs_patchifier.patch_encoder.weight"][2:], base)
    return settings


def _encoder(weights: Mapping[str, Tensor]) -> tuple[str, int]:
    """Kind and features of the image encoder."""
    kind = next((kind for name, kind in ENCODERS.items() if name in weights), None)
    head = next((weights[name] for name in _HEADS if name in weights), None)
    if kind is None or head is None:
        raise UserError(f"no image encoder among its weights: it would be one of {', '.join(ENCODERS.values())}")
    return kind, head.shape[0]


_HEADS = ("obs_encoder.model.fc.bias", "obs_encoder.model.heads.bias")


def _crop(patches: int, views: int, patch: tuple[int, ...], base: RunConfig) -> tuple[int, int]:
    """The image size that makes so many patches: the one that is set, else a square."""
    per_view, rest = divmod(patches, views)
    frames, off = divmod(base.data.next_frames, patch[0])
    if patches > 0 and not rest and not off and frames:
        grid, _ = divmod(per_view, frames)
        height, width = (size // (VAE_DOWNSAMPLE * p) for size, p in zip(base.data.crop, patch[1:], strict=True))
        if height * width * frames == per_view:
            return base.data.crop
        side = math.isqrt(grid)
        if side * side * frames == per_view:
            return side * patch[1] * VAE_DOWNSAMPLE, side * patch[2] * VAE_DOWNSAMPLE
    raise UserError(
        f"it has {patches} latent patches with data.action_horizon={base.data.action_horizon}, which make no square "
        f"image in {views} views: set data.action_horizon, data.next_frames, data.cameras=a,b or data.crop=height,width"
    )


VAE_DOWNSAMPLE = 8


def ordered(layout: Layout, weights: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """Weights with the columns of the condition in this house's order, (view, frame, feature)."""
    if not layout.frame_major:
        return dict(weights)
    data, features = config.data, cast(DpConfig, config.policy).obs_encoder.embed_dim
    images = torch.arange(data.obs_frames * len(data.cameras) * features)
    order = images.view(data.obs_frames, len(data.cameras), features).transpose(0, 1).flatten()

    def sort(value: Tensor) -> Tensor:
        return torch.cat([value[:, order], value[:, len(order) :]], dim=1)

    return {name: sort(value) if name.endswith(_MODULATION) else value for name, value in weights.items()}


_MODULATION = "adaLN_modulation.1.weight"
