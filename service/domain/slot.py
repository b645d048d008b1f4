"""A slot of a compute worker: where one job runs at a time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot offers to a job.

    Attributes:
        devices: CUDA devices that are the slot's alone, as CUDA_VISIBLE_DEVICES names them; none: the CPU.
        memory: Bytes of all of them, or those of the machine; None: unknown, so that it takes any job.
    """

    devices: tuple[str, ...] = ()
    memory: int | None = None
