"""What torchrun starts in the tests: every process trains the runs of the given configurations, one after the other."""

import sys
from pathlib import Path

import torch.distributed as dist

from uwm.config import RunConfig
from uwm.train.trainer import train

dist.init_process_group("gloo")  # once for all runs: torchrun's store can't serve a second group of the same name
for path in sys.argv[1:]:
    train(RunConfig.model_validate_json(Path(path).read_text()))
dist.destroy_process_group()
