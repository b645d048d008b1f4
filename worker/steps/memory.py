"""Fitting a job into the memory of the machine that it runs on."""

import contextlib
import ctypes
import gc
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from worker.engine.device import resolve_device, resolve_dtype
from worker.engine.errors import TooLarge
from worker.engine.options import Options, fit_to_model
from worker.engine.plan import Plan, plan
from worker.steps.loading import stored_dtype

logger = logging.getLogger(__name__)
CGROUP = Path("/sys/fs/cgroup/memory.max")
CLEARLY = 0.5  # a job that needs less than this share of the memory by a rough bound needs no plan


def device_memory(device: torch.device) -> int:
    """The bytes of a CUDA device, or those that this machine, or the container, lets a process have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def release() -> None:
    """Give back to the system what Python and the allocators keep of models that are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@dataclass(frozen=True, slots=True)
class Stored:
    """A model's folder, as far as a plan needs it.

    Attributes:
        config: Its configuration.
        device: The device that the options name.
        dtype: Of the weights in memory.
        options: Fitted to the model.
    """

    config: PretrainedConfig
    device: torch.device
    dtype: torch.dtype
    options: Options

    @classmethod
    def read(cls, folder: Path, options: Options) -> "Stored":
        """Read the configuration, and the headers of the weights files.

        Raises:
            UnreadableWeights: There are no readable weights files.
        """
        config, device = AutoConfig.from_pretrained(folder), resolve_device(options.device)
        dtype = resolve_dtype(options.dtype, device, stored_dtype(folder))
        return cls(config, device, dtype, fit_to_model(options, config))

    def plan(self, devices: int, memory: int | None = None) -> Plan:
        """The plan of a job for at most so many devices, each with so many bytes; None takes this machine's."""
        memory = device_memory(self.device) if memory is None else memory
        return plan(self.config, self.dtype.itemsize, self.options, devices=devices, memory=memory)

    def fitted(self) -> Options:
        """The options with which a job fits: fewer rows at once, activations recomputed, several devices, if needed.

        Raises:
            TooLarge: There are none.
        """
        memory = device_memory(self.device)
        if self._most() < CLEARLY * memory:
            return self.options if self.options.sharding == "always" else replace(self.options, devices=1)
        made = self.plan(self.options.devices, memory)
        if not made.fits:
            logger.error("a device has %d bytes, and the smallest settings need %d", memory, made.peak)
            raise TooLarge("the model does not fit into the memory of this worker")
        return made.options

    def _most(self) -> int:
        """More bytes than a job needs, found without a plan."""
        text, options = self.config.get_text_config(), self.options
        width: int = options.sequence_length * text.num_hidden_layers * text.hidden_size
        weights: int = 12 * text.num_hidden_layers * text.hidden_size**2 + 2 * text.vocab_size * text.hidden_size
        rows = options.row_budget + 10 * max(options.batch_size, options.retain_batch_size or 0)
        return 2**30 + 3 * self.dtype.itemsize * weights + 16 * width * rows
