"""Start the processes of a run on this machine, through torchrun's own agent, and start them again when one dies.

torchrun restarts whatever ends with an error. Here only a crash is a reason to: a request that can't be met or a run
that was stopped would just end the same way again. So each try is an agent without restarts of its own.

By hand, with torchrun's restarts: `torchrun --nproc-per-node=8 --max-restarts=3 -m uwm.train CONFIG.json`.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from uwm.config import RunConfig

SHUTDOWN_SECONDS = 50
"""How long the processes may take to write their checkpoint when they are stopped; their starter waits 60."""


def launch(config: RunConfig, path: str, stop_signals: Sequence[int]) -> int:
    """Run `python -m uwm.train PATH` in `train.processes` processes; returns the exit code of all.

    Args:
        config: that `path` holds.
        path: of the configuration.
        stop_signals: end a run in order.
    """
    for number in stop_signals:  # nothing is lost before the agent listens
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    in_order = (0, 2, *(128 + number for number in stop_signals))  # a UserError's and a stop's: a restart ends as they
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes tell what happened
    os.environ.setdefault("OMP_NUM_THREADS", "1" if config.train.threads == 0 else str(config.train.threads))
    if config.train.machines == 1 and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing leaves the machine
    code = 0
    try:
        for attempt in range(config.train.restarts + 1):
            code = _attempt(config, path, attempt)
            if code in in_order:
                return code
            with suppress(OSError):  # nobody reads it any more
                sys.stderr.write(f"a process of {config.name} ended with exit code {code} (try {attempt + 1})\n")
    except SignalException as error:
        return 128 + int(error.sigval)
    return code


def _attempt(config: RunConfig, path: str, attempt: int) -> int:
    train = config.train
    alone = train.machines == 1
    settings = LaunchConfig(
        min_nodes=train.machines,
        max_nodes=train.machines,
        nproc_per_node=train.processes,
        # machines meet under it, so it is the same on all of them; alone nobody else may have it
        run_id=uuid.uuid4().hex if alone else f"{config.name}-{attempt}",
        rdzv_backend="c10d",
        rdzv_endpoint=train.rendezvous or "127.0.0.1:0",
        local_addr="127.0.0.1" if alone else None,
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "uwm.train", path)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0
