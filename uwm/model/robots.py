"""Which numbers of the run's actions each robot has.

Letters: B batch, R robots, A action dimensions.
"""

import numpy as np
import torch
from torch import Tensor, nn

from uwm.config import DataConfig
from uwm.data.action_plan import ActionPlan


class RobotActions(nn.Module):
    """Knows what of the run's actions each of its robots lacks; it has nothing to learn and nothing to save.

    Args:
        data: with the run's action space and its robots.
    """

    _lacking: Tensor  # (R + 1, A) bool; the first is no robot, which lacks nothing

    def __init__(self, data: DataConfig) -> None:
        super().__init__()
        lacking = np.zeros((len(data.robots) + 1, data.action_dim), np.bool_)
        for row, robot in enumerate(data.embodiments, 1):
            if robot.action is not None and data.action is not None:
                own, dim = robot.action, data.action_dim
                plan = ActionPlan(source=own, target=data.action, source_dim=own.dim, target_dim=dim)
                lacking[row] = ~plan.known
        self._any = bool(lacking.any())
        self.register_buffer("_lacking", torch.from_numpy(lacking), persistent=False)

    def forward(self, robot: Tensor) -> Tensor | None:
        """What the robots (B,) lack, (B, 1, A) bool; None in a run whose robots have everything."""
        return self._lacking[robot][:, None] if self._any else None
