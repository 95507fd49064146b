"""Configurations of before the policies owned their settings, as those of today.

Then every run had the settings of every policy: `policy` was a name, and `model`, `tokenizer` and `diffusion` stood
beside it. Checkpoints and bundles from that time stay readable. The tables are history: they don't follow the classes.
"""

from collections.abc import Mapping
from typing import Any

_TRUNK = ("embed_dim", "depth", "num_heads", "attention")
_ADALN = (*_TRUNK, "timestep_embed_dim", "mlp_ratio", "qkv_bias")
_UWM = ("num_registers", "patch", "obs_encoder", "current_latents", "adaln", "adaln_rank", "token_dropout")
_MODEL = {
    "uwm": (*_ADALN, *_UWM),
    "pad": (*_ADALN, "patch"),
    "dp": (*_ADALN, "obs_encoder"),
    "dp_unet": ("timestep_embed_dim", "obs_encoder"),
    "gr1": _TRUNK,
}
_SCHEDULE = (
    "train_timesteps",
    "sample_steps",
    "beta_schedule",
    "prediction",
    "spacing",
    "sampler",
    "clip_action",
)
_LATENT = (*_SCHEDULE, "latent_target", "clip_latent")
_DIFFUSION = {
    "uwm": (*_LATENT, "absent", "absent_embedding", "marked_share", "hoist", "action_loss"),
    "pad": _LATENT,
    "dp": (*_SCHEDULE, "action_loss"),
    "dp_unet": (*_SCHEDULE, "action_loss"),
}
_RENAMED = {
    "data.action_steps": "data.action_horizon",
    "diffusion.hoist": "policy.diffusion.precompute_modulation",
    "model.gr1.patch": "policy.decoder.patch",
    "model.gr1.decoder_depth": "policy.decoder.depth",
    "model.gr1.decoder_heads": "policy.decoder.heads",
    "model.gr1.resampler_": "policy.obs_encoder.resampler_",
    "model.unet.": "policy.",
    "model.": "policy.",
    "tokenizer.": "policy.tokenizer.",
    "diffusion.": "policy.diffusion.",
}
"""Start of an earlier setting's name -> today's; the first that fits counts."""


def todays_name(setting: str) -> str | None:
    """Today's name of a setting that was called something else; None when it was not."""
    for earlier, now in _RENAMED.items():
        if setting.startswith(earlier):
            return now + setting.removeprefix(earlier)
    return None


def upgraded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's settings in today's form; those that are in it already come back as they are."""
    values = _with_horizon(values)
    earlier = {"model", "tokenizer", "diffusion"} & {*values}
    if not (earlier or isinstance(values.get("policy"), str)):
        return values
    kind = values.get("policy", "uwm")
    model = values.get("model", {})
    policy: dict[str, Any] = {"kind": kind, **_picked(model, _MODEL.get(kind, ()))}
    if kind in _DIFFUSION:
        policy["diffusion"] = _picked(values.get("diffusion", {}), _DIFFUSION[kind])
    if "hoist" in policy.get("diffusion", {}):
        policy["diffusion"]["precompute_modulation"] = policy["diffusion"].pop("hoist")
    if kind in ("uwm", "pad") and "tokenizer" in values:
        policy["tokenizer"] = values["tokenizer"]
    if kind == "dp_unet":
        policy |= model.get("unet", {})
    if kind == "gr1":
        policy |= _gr1(model)
    return {**{name: value for name, value in values.items() if name not in earlier}, "policy": policy}


def _with_horizon(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The length of an action chunk under the name that it has today."""
    data = values.get("data")
    if not (isinstance(data, Mapping) and "action_steps" in data):
        return values
    kept = {name: value for name, value in data.items() if name != "action_steps"}
    return {**values, "data": {**kept, "action_horizon": data["action_steps"]}}


def _gr1(model: Mapping[str, Any]) -> dict[str, Any]:
    sizes = model.get("gr1", {})
    encoder = {name: value for name, value in sizes.items() if name.startswith("resampler_")}
    decoder = {name.removeprefix("decoder_"): value for name, value in sizes.items() if name not in encoder}
    return {"obs_encoder": encoder | _picked(model.get("obs_encoder", {}), ("kind",)), "decoder": decoder}


def _picked(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
