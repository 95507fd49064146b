"""A tiny CLIP on disk, as transformers writes one."""

import json
from pathlib import Path
from typing import Any

import torch

FEATURES = 6


def write_clip(folder: Path) -> None:
    """A random CLIP with `FEATURES` text features: model and tokenizer, in safetensors."""
    import transformers as library

    transformers: Any = library
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"projection_dim": FEATURES}
    config = transformers.CLIPConfig(
        text_config=text | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "pad_token_id": 0},
        vision_config=text | {"image_size": 8, "patch_size": 4},
        projection_dim=FEATURES,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder, safe_serialization=True)


def _vocabulary() -> dict[str, int]:
    """Single letters, at the end of a word and elsewhere, and the two special tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz.,'"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}
