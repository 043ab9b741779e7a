"""Runs `int8tile`, sending this process a signal in one training step: SIGNAL=name:rank:step."""

import faulthandler
import os
import signal

from int8tile.cli import main
from int8tile.finetune.trainer import ArmTrainer

NAME, RANK, *STEPS = os.environ["SIGNAL"].split(":")
train = ArmTrainer.training_step


def training_step(self, *args, **kwargs):
    if os.environ.get("RANK", "0") == RANK:
        for _ in range(STEPS.count(str(self.state.global_step))):
            os.kill(os.getpid(), getattr(signal, NAME))
    return train(self, *args, **kwargs)


ArmTrainer.training_step = training_step
if __name__ == "__main__":
    faulthandler.dump_traceback_later(50)  # says where a run hangs
    main()
