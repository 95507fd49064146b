"""Networks: the diffusion transformer, the observation encoders, the tokenizers."""
