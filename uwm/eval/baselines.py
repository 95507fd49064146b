"""The two predictions that need no learning; a model that does not beat them has learned nothing.

Dimension letters: B batch, V views, O observation frames, N next frames, A action dimensions, H and W
image size.
"""

import torch
from torch import Tensor

from uwm.data.batch import Batch
from uwm.data.mixture import Member, mixture_normalizer
from uwm.data.normalize import ActionNormalizer

MEAN_ACTION = "mean action"
COPIED = "copied last frame"
COPIED_TOKENIZED = "copied last frame, tokenized"
"""The copy as the tokenizer shows it, which is how every prediction is shown."""


def mean_action(training: Member, normalizer: ActionNormalizer) -> Tensor:
    """The average action of the training episodes, as the network sees it.

    Args:
        training: training episodes of the evaluated data; without any known action there, the mean of the
            checkpoint's own training data takes its place.
        normalizer: of the checkpoint, for the robot of the data.

    Returns:
        (A,) float32, normalized.
    """
    if not training.known_actions:
        return normalizer.normalized_mean()
    own = mixture_normalizer([training])
    return normalizer.normalize(torch.tensor(own.mean, dtype=torch.float64)).float()


def copied_frames(batch: Batch) -> tuple[Tensor, Tensor]:
    """Predict that nothing moves.

    Returns:
        The last observation frame, repeated (B, V, N, 3, H, W), and where both it and the truth are
        known (B, V, N).
    """
    frames = batch.obs[:, :, -1:].expand_as(batch.next_obs)
    return frames, batch.next_mask & batch.obs_mask[:, :, -1:]
