"""Latents encoded ahead of a training, so that it needs no tokenizer."""
