"""Fitting a job into the memory of the machine that it runs on."""

import contextlib
import ctypes
import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from service.weight_files import loaded_weights
from worker.engine.device import resolve_device, resolve_dtype
from worker.engine.errors import TooLarge, Unplanned
from worker.engine.options import DISTIL, Options, fit_to_model
from worker.engine.plan import Plan, plan
from worker.slots import machine_memory
from worker.steps.loading import stored_dtype

logger = logging.getLogger(__name__)
PLANNED, CHARACTERS = 32, 4  # sequences to forget, if they are not known; characters a token, about
CLEARLY = 0.5  # a job that needs less than this share of the memory by a rough bound needs no plan


def device_memory(device: torch.device) -> int:
    """The bytes of a CUDA device, or those that this machine, or the container, lets a process have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory()


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
        stored: Bytes of its weights files.
    """

    config: PretrainedConfig
    device: torch.device
    dtype: torch.dtype
    options: Options
    stored: int

    @classmethod
    def read(cls, folder: Path, options: Options) -> "Stored":
        """Read the configuration, and the headers of the weights files.

        Raises:
            UnreadableWeights: There are no readable weights files.
        """
        config, device = AutoConfig.from_pretrained(folder), resolve_device(options.device)
        dtype = resolve_dtype(options.dtype, device, stored_dtype(folder))
        size = sum((folder / name).stat().st_size for name in loaded_weights(folder))
        return cls(config, device, dtype, fit_to_model(options, config), size)

    def plan(self, devices: int, memory: int | None = None, sequences: int = PLANNED) -> Plan:
        """The plan of a job for at most so many devices, each with so many bytes; None takes this machine's.

        The forget set has so many sequences.

        Raises:
            Unplanned: It cannot be counted.
        """
        one_machine = memory is None and self.device.type != "cuda"
        memory = device_memory(self.device) if memory is None else memory
        job = (self.config, self.dtype.itemsize, self.options, sequences)
        return plan(*job, devices=devices, memory=memory, one_machine=one_machine)

    def fitted(self, texts: Sequence[str]) -> Options:
        """The options with which a job fits: fewer rows at once, activations recomputed, several devices, if needed.

        What a reference says of these texts is in the memory of a CPU, however many there are.

        Raises:
            TooLarge: There are none.
        """
        options, memory = self.options, device_memory(self.device)
        present = torch.cuda.device_count() if self.device.type == "cuda" else options.devices
        devices = min(options.devices, present)
        unplanned = replace(options, devices=devices if options.sharding == "always" else 1)
        if options.loss != DISTIL and self._most() < CLEARLY * memory:
            return unplanned
        window = CHARACTERS * options.sequence_length
        sequences = sum(math.ceil(len(text) / window) for text in texts) if self.device.type == "cpu" else 0
        try:
            made = self.plan(devices, sequences=max(PLANNED, sequences))
        except Unplanned as error:
            logger.warning("%s", error)
            return unplanned
        if not made.fits:
            logger.error("a device has %d bytes, and the smallest settings need %d", made.memory, made.peak)
            raise TooLarge("the model does not fit into the memory of this worker")
        return made.options

    def _most(self) -> int:
        """Bytes that a job hardly ever needs, found without a plan."""
        text, options = self.config.get_text_config(), self.options
        width: int = options.sequence_length * text.num_hidden_layers * text.hidden_size
        rows = options.row_budget + 10 * max(options.batch_size, options.retain_batch_size or 0)
        return 2**30 + 4 * self.stored + 16 * width * rows
