"""The command ``train``: a world from episodes, with the time it will take."""

from __future__ import annotations

import math
import sys

from neuralsim.runtime.command import CommandOutput
from neuralsim.runtime.interrupt import Stopped
from neuralsim.training.config import TrainConfig
from neuralsim.training.time_estimate import estimate_time
from neuralsim.training.trainer import Trainer


def train_command(config: TrainConfig) -> CommandOutput:
    """Train, and return the commands that use the world. Raises Stopped where a signal ended the training."""
    try:
        trainer = Trainer(config)
        about = f"{len(trainer.store)} episodes; {estimate_time(trainer)}"
        print(f"{trainer.recipe.name} on {trainer.store.folder}: {about}", flush=True)
        world = trainer.run()
    except Stopped as stop:
        if config.stop_after == math.inf:
            raise
        print(stop, file=sys.stderr)
        return CommandOutput()
    lines = (
        f"world    {world}",
        f"play     neuralsim play {world}",
        f"measure  neuralsim measure {world}",
        f"curves   tensorboard --logdir {config.folder}",
    )
    return CommandOutput(lines=lines)
