"""What the arms of one run share."""

from __future__ import annotations

from dataclasses import dataclass

from int8tile.finetune.checkpoints import Checkpoints
from int8tile.finetune.interruption import Interruption
from int8tile.finetune.processes import Processes
from int8tile.finetune.tasks import Task


@dataclass(frozen=True)
class Session:
    """What the arms of one run share.

    Args:
        task: The data, the model and the metrics.
        processes: The run's processes.
        interruption: Whether the run is to end.
        checkpoints: The run's checkpoints.
    """

    task: Task
    processes: Processes
    interruption: Interruption
    checkpoints: Checkpoints
