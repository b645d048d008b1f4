"""The checkpoint of a training, on the disk: the last one alone."""

from pathlib import Path

import torch

from worker.engine.checkpoint import Checkpoint
from worker.steps.stages import Stages, replace_file


def save_checkpoint(work: Path, stages: Stages, checkpoint: Checkpoint) -> None:
    """Save a checkpoint; the outputs of an earlier checkpoint are no longer valid.

    Args:
        work: The working folder.
        stages: What is done in it.
        checkpoint: The checkpoint.
    """
    path = work / f"checkpoint-{checkpoint.epoch}-{checkpoint.verified}.pt"
    torch.save({name: getattr(checkpoint, name) for name in Checkpoint.__slots__}, path.with_suffix(".new"))
    replace_file(path, path.with_suffix(".new"))
    stages.finish("epoch", [path], undo=("unlearn", "merge"))
    for other in work.glob("checkpoint-*.pt"):
        if other != path:
            other.unlink()


def load_checkpoint(stages: Stages, last_epoch: int) -> Checkpoint | None:
    """The last checkpoint, if it is complete and of a run with the same inputs.

    Args:
        stages: What is done in the working folder.
        last_epoch: The epoch after which the run gives up.
    """
    if not stages.done("epoch"):
        return None
    (path,) = stages.outputs("epoch")
    checkpoint = Checkpoint(**torch.load(path, weights_only=True, map_location="cpu"))
    return checkpoint.ended(last_epoch)
