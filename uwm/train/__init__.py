"""The one trainer, its checkpoints and its log."""
