"""Published checkpoints: read without running anything in them, and turned into checkpoints of this house."""
