"""The slots of a compute worker: one job runs in each, on devices that no other slot has.

This process never imports torch, so that a GPU's memory is the compute child's alone: the driver's own tool counts.
"""

import os
import queue
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from service.domain.slot import Slot
from service.observability.logging import get_logger

CGROUP = Path("/sys/fs/cgroup/memory.max")
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
COLUMNS, MIB, TOOL_SECONDS = 3, 2**20, 20
logger = get_logger(__name__)


class Slots:
    """The free slots; at first one that offers what there is, unmeasured."""

    def __init__(self) -> None:
        """One slot."""
        self.all = [Slot()]
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._free.put(self.all[0])

    def deal(self, count: int) -> None:
        """Make so many slots, and deal this machine's devices out to them. Nothing may run yet."""
        self.all, self._free = dealt(cuda_devices(os.environ), machine_memory(), count), queue.SimpleQueue()
        for slot in self.all:
            self._free.put(slot)

    @contextmanager
    def free(self) -> Iterator[Slot | None]:
        """A free slot, taken inside the block; None if there is none."""
        try:
            slot = self._free.get_nowait()
        except queue.Empty:
            yield None
            return
        try:
            yield slot
        finally:
            self._free.put(slot)


def dealt(devices: Mapping[str, int], machine: int, count: int) -> list[Slot]:
    """So many slots. Each has devices of its own, or one that it shares if there are fewer devices than slots.

    One slot has them all, as the worker sees them: then a policy may name one by its number.

    Args:
        devices: CUDA device -> its bytes.
        machine: Bytes of the machine, for slots without such a device.
        count: How many slots.

    Returns:
        The slots.
    """
    if not devices:
        return [Slot((), machine)] * count
    if count == 1:
        return [Slot((), min(devices.values()), on_cuda=True)]
    names = list(devices)
    shares = [tuple(names[number::count]) or (names[number % len(names)],) for number in range(count)]
    return [Slot(share, min(devices[name] for name in share), on_cuda=True) for share in shares]


def cuda_devices(environment: Mapping[str, str]) -> dict[str, int]:
    """The CUDA devices that this process may use, by their UUIDs -> the bytes of each.

    There are none if the driver's tool names none. Their numbers are not used: CUDA may count in another order.
    """
    try:
        listed = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=TOOL_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        if any(Path("/dev").glob("nvidia[0-9]*")):
            logger.warning("CUDA devices are not dealt out: nvidia-smi does not answer", error=type(error).__name__)
        return {}
    rows = [row for line in listed.splitlines() if len(row := [part.strip() for part in line.split(",")]) == COLUMNS]
    present = {uuid: int(memory) * MIB for _, uuid, memory in rows if memory.isdecimal()}  # in parts: [N/A]
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    uuids = {index: uuid for index, uuid, _ in rows}
    names = [uuids.get(name.strip(), name.strip()) for name in chosen.split(",")]
    return {name: present[name] for name in names if name in present}


def machine_memory() -> int:
    """The bytes that this machine, or the container, lets a process have."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine
