"""Published checkpoints on states and language: the condition is the published one, number for number.

What a published network is conditioned on is written down here once more, independently: an image encoder's features,
states frame by frame in the order of their sorted names, and one linear map of CLIP's text features.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from storage_schemas.errors import UserError
from uwm.auto import AutoPolicy
from uwm.baselines.dp_network import DpTransformer
from uwm.checkpoint import load_checkpoint, load_policy
from uwm.language.encoder import load_encoder
from uwm.model.obs_encoder import IMAGENET_MEAN, IMAGENET_STD, ResNet18GN
from uwm.model.transformer import DiffusionTransformer
from uwm.policies import DpConfig, UwmConfig
from uwm.reference.importer import import_reference

VIEWS, FRAMES, WIDTH, TEXT = 2, 2, 5, 6
DIMS = {"gripper": 1, "joints": 3}
STATES = {"gripper": np.float32([[0.1], [0.3]]), "joints": np.float32([[1, 2, 3], [4, 5, 6]])}
SAID = "open the drawer"
SETTINGS = (
    "policy.num_heads=2",
    "data.action_horizon=4",
    "data.cameras=left,wrist",
    "data.crop=32,32",
    "data.resize=32,32",
)


class PublishedCondition(nn.Module):
    """The published observation encoder's current part, by its layout alone."""

    def __init__(self, clip: nn.Module, *, frame_major: bool) -> None:
        super().__init__()
        self.images = ResNet18GN(WIDTH)
        self.text_encoder = nn.ModuleDict({"language_model": clip, "head": nn.Linear(TEXT, WIDTH)})
        self.frame_major = frame_major

    def forward(self, images: Tensor, states: dict[str, Tensor], features: Tensor) -> Tensor:
        """(B, V, T, 3, H, W), field -> (B, T, d), (B, TEXT) -> (B, G)."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        seen = self.images((images.flatten(0, 2) - mean) / std).view(*images.shape[:3], WIDTH)  # (B, V, T, D)
        seen = seen.transpose(1, 2) if self.frame_major else seen
        low = torch.cat([states[name] for name in sorted(states)], dim=-1)  # (B, T, D)
        return torch.cat([seen.flatten(1), low.flatten(1), self.text_encoder["head"](features)], dim=-1)


@pytest.fixture(params=["uwm", "dp"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def published(policy: str, clip_folder: Path) -> PublishedCondition:
    import transformers

    clip: Any = transformers.CLIPModel.from_pretrained(clip_folder)
    torch.manual_seed(1)
    return PublishedCondition(clip, frame_major=policy == "dp").eval()


@pytest.fixture
def file(
    policy: str, published: PublishedCondition, foreign: ModuleType, write: Callable[..., Path], vae: nn.Module
) -> Path:
    """What the published trainer saves of such a network."""
    torch.manual_seed(2)
    network = denoiser(policy)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = "obs_encoder.rgb_encoder." if policy == "dp" else "obs_encoder.img_encoder.model."
    content = {f"noise_pred_net.{key}": value for key, value in network.state_dict().items()}
    content |= {f"{images}{key}": value for key, value in published.images.state_dict().items()}
    content |= {f"obs_encoder.text_encoder.{key}": value for key, value in published.text_encoder.state_dict().items()}
    if policy == "uwm":
        content |= {f"obs_encoder.vae.vae.{key}": value for key, value in vae.state_dict().items()}
    nested = foreign.NestedDictLinearNormalizer()
    for name, dim in reversed(DIMS.items()):
        nested[name] = foreign.LinearNormalizer(np.full(dim, 2, np.float32), np.arange(dim, dtype=np.float32))
    return write({"model": OrderedDict(content), "lowdim_normalizer": nested, "step": 3})


def denoiser(policy: str) -> nn.Module:
    """A small network of the published layout."""
    condition = VIEWS * FRAMES * WIDTH + FRAMES * sum(DIMS.values()) + WIDTH
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "timestep_embed_dim": 8}
    if policy == "dp":
        config = DpConfig.model_validate(sizes)
        return DpTransformer(config, input_len=4, input_dim=3, global_cond_dim=condition)
    return DiffusionTransformer(
        UwmConfig.model_validate(sizes),
        global_cond_dim=condition,
        image_shape=(2, 4, 4),
        num_chans=4,
        num_views=VIEWS,
        action_len=4,
        action_dim=3,
    )


def published_states() -> dict[str, Tensor]:
    """The states as the published normalizer gives them to the network."""
    return {
        name: torch.from_numpy((values - np.arange(DIMS[name], dtype=np.float32)) / 2)[None]
        for name, values in STATES.items()
    }


def test_the_condition_is_the_published_one(
    policy: str, published: PublishedCondition, file: Path, tmp_path: Path, clip_folder: Path
) -> None:
    import_reference(
        file, tmp_path / "run", (*SETTINGS, "data.language.kind=clip", f"data.language.path={clip_folder}")
    )
    loaded = AutoPolicy.load(tmp_path / "run", device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (VIEWS, FRAMES, 32, 32, 3), dtype=np.uint8)
    taken: list[Any] = []
    encode = loaded.policy.encode_batch
    loaded.policy.encode_batch = lambda *args, **named: taken.append(encode(*args, **named)) or taken[-1]  # type: ignore
    action = loaded.act(dict(zip(("left", "wrist"), frames, strict=True)), states=STATES, instruction=SAID)
    images = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)[None].float() / 255
    features = load_encoder(loaded.config.data.language).encode([SAID])
    with torch.no_grad():
        torch.testing.assert_close(features, clip_features(published, clip_folder))
        expected = published(images, published_states(), features)
    found = taken[0].cond
    if policy == "dp":  # columns of images are sorted here by view, there by frame; so are the network's weights
        sizes = [VIEWS * FRAMES * WIDTH, expected.shape[1] - VIEWS * FRAMES * WIDTH]
        seen, rest = expected.split(sizes, dim=1)
        expected = torch.cat([seen.view(1, FRAMES, VIEWS, WIDTH).transpose(1, 2).flatten(1), rest], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert action.shape == (4, 3)


def clip_features(published: PublishedCondition, clip_folder: Path) -> Tensor:
    """As the published trainer takes them."""
    import transformers

    tokenizer: Any = transformers.CLIPTokenizerFast.from_pretrained(clip_folder)
    tokens = tokenizer([SAID], padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    features: Tensor = published.text_encoder["language_model"].get_text_features(**tokens).pooler_output
    return features


def test_what_the_file_tells_is_taken_from_it(policy: str, file: Path, tmp_path: Path) -> None:
    import_reference(file, tmp_path / "run", SETTINGS)
    checkpoint = load_checkpoint(tmp_path / "run")
    data = checkpoint.config.data
    assert {state.name: state.dim for state in data.states} == DIMS
    assert [bounds.low for bounds in checkpoint.normalizer.states] == [(-2.0,), (-2.0, -1.0, 0.0)]
    assert (data.language.kind, data.language.features) == ("clip", TEXT)
    assert data.language.identity is not None
    assert data.language.identity.endswith("-"), "the file knows no vocabulary"
    weights = checkpoint.tensors("model")
    assert torch.equal(weights["condition.absent"], weights["condition.head.bias"])
    assert not any("language_model" in name for name in weights)


def test_fields_may_have_the_names_of_ones_own_data(policy: str, file: Path, tmp_path: Path) -> None:
    import_reference(file, tmp_path / "run", (*SETTINGS, "data.states=claw,arm"))
    _, config, normalizer = load_policy(tmp_path / "run", "cpu")
    assert [(state.name, state.dim) for state in config.data.states] == [("claw", 1), ("arm", 3)]
    assert [bounds.name for bounds in normalizer.states] == ["claw", "arm"]


def test_fields_that_do_not_make_up_the_condition_are_refused(policy: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"they leave 8 for 3 numbers of states in each frame. Set .*data\.states"):
        import_reference(file, tmp_path / "run", (*SETTINGS, "data.states=arm:3"))


def test_another_encoder_is_refused(policy: str, file: Path, tmp_path: Path, clip_folder: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "clip"
    shutil.copytree(clip_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file(
        weights | {"text_projection.weight": weights["text_projection.weight"] + 1},
        other / "model.safetensors",
        {"format": "pt"},
    )
    import_reference(file, tmp_path / "run", (*SETTINGS, "data.language.kind=clip", f"data.language.path={other}"))
    image = {"left": np.zeros((32, 32, 3), np.uint8)}
    with pytest.raises(UserError, match="another text encoder"):
        AutoPolicy.load(tmp_path / "run", device="cpu").act(image, instruction=SAID)
