"""What a policy knows beside images: the robot's states and an instruction, as features of the condition.

Dimension letters: B batch, O observation frames, D numbers of all states, E features of an instruction, W width.
"""

import torch
from torch import Tensor, nn

from uwm.config import DataConfig
from uwm.data.batch import Batch


class ConditionEncoder(nn.Module):
    """States as they are, a linear map of the instruction's features and a vector for the robot, one after the other.

    So does published UWM (`use_low_dim`, `use_language`), which knows no robots, after the images' features. What is
    unknown of a state is zero; where there is no instruction, or no robot, a learned vector stands. A run with none of
    them has no parameters here.

    Args:
        data: which states, whether instructions, and whether the robot is told.
        width: W.
    """

    def __init__(self, data: DataConfig, width: int) -> None:
        super().__init__()
        self.out_dim = data.obs_frames * data.state_dim
        self.head: nn.Linear | None = None
        if data.language.is_heard:
            self.head = nn.Linear(data.language.width, width)
            self.absent = nn.Parameter(torch.zeros(width))
            nn.init.trunc_normal_(self.absent, std=0.02)
            self.out_dim += width
        self.robot: nn.Embedding | None = None
        if data.robot_embedding:
            self.robot = nn.Embedding(len(data.robots) + 1, width)  # the first is none
            nn.init.trunc_normal_(self.robot.weight, std=0.02)
            self.out_dim += width

    def forward(self, batch: Batch) -> Tensor:
        """The condition's features beside the images', (B, O D + W + W); each W is 0 for a run that has it not."""
        features = [batch.state.where(batch.state_mask, 0.0).flatten(1)]  # (B, O D), ordered (frame, number)
        if self.head is not None:
            heard = batch.language_mask[:, None]  # (B, 1)
            # unknown features are zeroed before the map, so that they are in no gradient either
            spoken = self.head(batch.language.where(heard, 0.0).to(self.head.weight.dtype))
            features.append(torch.where(heard, spoken, self.absent))  # (B, W)
        if self.robot is not None:
            features.append(self.robot(batch.embodiment))  # (B, W)
        return torch.cat(features, dim=1)
