"""A slot of a compute worker: where one job runs at a time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot offers to a job.

    Attributes:
        devices: CUDA devices that are the slot's alone, as CUDA_VISIBLE_DEVICES names them; none: what the worker has.
        memory: Bytes of the smallest of its devices, or those of the machine; None: unknown, so that it takes any job.
        on_cuda: Whether it computes on CUDA devices.
    """

    devices: tuple[str, ...] = ()
    memory: int | None = None
    on_cuda: bool = False
