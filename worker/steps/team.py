"""The processes that compute one job together: the first runs the pipeline, and the others do what it does on a model.

The first process starts the others, each with a device of its own, and is the only one that talks to the worker. Texts
reach the others as arguments, over a connection that does not leave the machine. They end when the first one does.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from worker.engine.errors import EngineError
from worker.engine.sharding import shard
from worker.steps.loading import load_model
from worker.steps.memory import release

Result = TypeVar("Result")
MEETING = "UNLEARND_MEETING"  # the file in which the processes of a machine find each other
LONGEST = timedelta(days=7)  # between two meetings: the first process may merge, or wait for a disk, meanwhile


class Team:
    """What one process of a team knows; a team of one is an ordinary process.

    Attributes:
        size: How many processes there are.
        rank: This one's number; 0 is the first.
    """

    def __init__(self) -> None:
        """A team of one, or that which `start` has started this process for."""
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self._others: list[subprocess.Popen[bytes]] = []

    def meet(self) -> None:
        """Connect to the other processes."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        meeting = f"file://{os.environ[MEETING]}"
        dist.init_process_group(backend, meeting, LONGEST, world_size=self.size, rank=self.rank)

    def start(self, size: int, work: Path) -> None:
        """Start the other processes on this machine; a team that is there already stays as it is.

        Args:
            size: How many processes there will be.
            work: A folder for the file in which they meet.
        """
        if size == 1 or self.size > 1:
            return
        self.size = size
        place = tempfile.mkdtemp(dir=work)
        common = {MEETING: f"{place}/meeting", "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
        os.environ |= common | {"RANK": "0"}
        for rank in range(1, size):
            self._others.append(
                subprocess.Popen(
                    [sys.executable, "-m", "worker.child"],
                    stdin=subprocess.PIPE,  # it ends when this closes
                    stdout=sys.stderr,
                    env=os.environ | {"RANK": str(rank)},
                )
            )
        for process in self._others:
            threading.Thread(target=_end_with, args=(process,), daemon=True).start()
        self.meet()

    def run(
        self,
        function: Callable[..., Result],
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        *args: object,
        callbacks: Mapping[str, object] | None = None,
        **arguments: object,
    ) -> Result:
        """Call a function of the engine in every process, on a model that they share.

        Args:
            function: Called with the model, and with what follows.
            folder: Of the model.
            dtype: Of its weights.
            device: Of this process.
            *args: Positional arguments; they are sent to the other processes, and so are named ones.
            callbacks: Named arguments for this process alone.
            **arguments: Named arguments.

        Returns:
            What the function returns here.
        """
        if self.size > 1:
            dist.broadcast_object_list([(function, folder, dtype, device.type, args, arguments)])
        return function(_load(folder, dtype, self._own(device)), *args, **arguments, **(callbacks or {}))

    def follow(self) -> None:
        """Do what the first process does on models, until it ends."""
        while True:
            message: list[Any] = [None]  # function, folder, dtype, kind of device, arguments; None ends it
            dist.broadcast_object_list(message)
            if message[0] is None:
                return
            function, folder, dtype, kind, args, arguments = message[0]
            device = self._own(torch.device(kind))
            with contextlib.suppress(EngineError):  # the first process reports it
                function(_load(folder, dtype, device), *args, **arguments)

    def _own(self, device: torch.device) -> torch.device:
        """The device of this process: of several CUDA devices each has one."""
        return torch.device("cuda", self.rank) if self.size > 1 and device.type == "cuda" else device

    def end(self) -> None:
        """Let the other processes end."""
        if self.size > 1:
            dist.broadcast_object_list([None])
            dist.destroy_process_group()
        for process in self._others:
            process.wait()


def _end_with(process: "subprocess.Popen[bytes]") -> None:
    """End this process if another one of the team ends before it: nobody would notice in the midst of a meeting."""
    if process.wait() != 0:
        os._exit(71)


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model in a folder, shared by the processes, on this one's device."""
    release()
    return shard(load_model(folder, dtype), device)
