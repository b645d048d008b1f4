"""What a job needs in each stage, from a model's configuration alone: its shapes are run, and its bytes are counted.

The model's own code runs on tensors without memory: a decoding step at its full width, and a training step with the
adapter in place. So no formula of a family is needed. What is not run is added: the sums of the Fisher estimate, the
optimiser's state, the logits of one chunk.

b: batch, s: sequence, r: rows (prefixes that are decoded at once), d: output features, k: input features
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.cache_utils import DynamicCache

from worker.engine import distil, fisher, other_prompts, reference, variants
from worker.engine.adapter import find_targets, target_weights
from worker.engine.ahead import moves_whole
from worker.engine.attacks.relearned import BATCH, RANK
from worker.engine.device import resolve_device, training, trains_in_bfloat16
from worker.engine.errors import Unplanned
from worker.engine.experts import separate_experts
from worker.engine.head import CHUNK_LOGITS, hidden_states
from worker.engine.live_bytes import LiveBytes
from worker.engine.losses import LOSSES
from worker.engine.metrics.caching import cache_argument
from worker.engine.metrics.decode import PREFILLED, Row, row_cache
from worker.engine.onednn import BLOCK
from worker.engine.options import DISTIL, Options
from worker.engine.sharding import gathered_modules
from worker.engine.stand_ins import as_adapted, begin_graph
from worker.engine.types import CausalLM

logger = logging.getLogger(__name__)
# It prints the trace of whatever fails, and here much is only tried.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
PROCESS = 500_000_000  # bytes: Python with torch, transformers and peft, and what they keep
SLACK = 1.15  # of what an allocator takes for its tensors, measured (`bench.memory`)
LEAST_ROWS, MOST_DEVICES = 64, 1024  # samples are drawn, and answers, in as many rows at once
DRAWN = 3  # arrays of all their logits in float64
CHUNKS = 6  # logits of one chunk that a loss holds: its own, the parent's, both as log-probabilities, two gradients
FACTORS = 9  # copies of the factors: two adapters, gradients, AdamW's two sums, those of checkpoints
AHEAD = 4  # more of them while it looks ahead: factors and gradients as they were, another optimiser's two sums
WHOLE = 5  # float32 copies of all that moves then: as it was, gradients, the two sums, and what a step takes
MERGED = 7  # the same while merging: checkpoints, and the change of twice the rank
PRODUCT = 2 * 4 * BLOCK  # bytes of a block of weights in a product's own layout, and of its working memory
REFERENCE = 5  # copies of the reference while it is trained: itself, gradients, AdamW's two sums, the best one
REFERENCE_LOGITS = 4  # arrays of all logits of its step, if it may begin from nothing
SOME_WEIGHTS = 4  # float32 copies of the largest weight while it is decomposed, or rounded


@dataclass(frozen=True, slots=True)
class Need:
    """The memory of one stage, in bytes on each device.

    Attributes:
        stage: measure, initialise, train, merge or verify.
        weights: The model's weights.
        activations: Everything else but the libraries.
    """

    stage: str
    weights: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, with the libraries."""
        return PROCESS + self.weights + self.activations


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a job that fits, or of the smallest one that does not.

    Attributes:
        options: With a row budget, with activations recomputed, and with so many devices as needed.
        needs: Of each stage.
        memory: Bytes of one device.
        parameters: How many weights the model has.
        enough: How many such devices would do, if these do not; None if no number would.
    """

    options: Options
    needs: list[Need]
    memory: int
    parameters: int
    enough: int | None = None

    @property
    def devices(self) -> int:
        """On how many devices the weights are shared."""
        return self.options.devices

    @property
    def peak(self) -> int:
        """The most that a stage needs on one device."""
        return max(need.total for need in self.needs)

    @property
    def fits(self) -> bool:
        """Whether every stage does."""
        return self.peak <= self.memory


def plan(
    config: PretrainedConfig,
    itemsize: int,
    options: Options,
    sequences: int = 32,
    *,
    devices: int,
    memory: int,
    one_machine: bool = False,
) -> Plan:
    """The first settings that fit: on the fewest devices, without recomputed activations, with the most rows at once.

    Args:
        config: The model's configuration.
        itemsize: Bytes of a weight in memory.
        options: The run's options.
        sequences: Of the forget set.
        devices: There are so many.
        memory: Bytes of each.
        one_machine: Whether `memory` is that of all processes together, as on a CPU.

    Returns:
        A plan that fits, or the smallest one on all devices.

    Raises:
        Unplanned: The model's code does not run on shapes alone.
    """
    shapes = Shapes(config, itemsize, options, sequences)
    rows = options.row_budget
    budgets = [rows, *(rows >> by for by in range(1, rows.bit_length()) if rows >> by >= LEAST_ROWS)]
    settings = [
        replace(options, row_budget=budget, checkpoint_activations=recomputed)
        for recomputed in sorted({options.checkpoint_activations, True})
        for budget in budgets
    ]

    def on(tried: Options, count: int) -> Plan:
        each = memory // count if one_machine else memory
        return Plan(replace(tried, devices=count), shapes.needs(tried, count), each, shapes.parameters)

    for count in range(devices if options.sharding == "always" else 1, devices + 1):
        for tried in settings:
            if (made := on(tried, count)).fits:
                return made
    more = range(devices + 1, 1 if one_machine else MOST_DEVICES + 1)
    return replace(made, enough=next((count for count in more if on(tried, count).fits), None))


class Shapes:
    """A model without memory, and what its parts need.

    Attributes:
        parameters: How many weights it has.
        stored: Their bytes.
    """

    def __init__(self, config: PretrainedConfig, itemsize: int, options: Options, sequences: int = 32) -> None:
        """Make the shapes of a model, for a forget set of so many sequences."""
        self._fake, self._options = FakeTensorMode(), options
        self._model = self._without_numbers(config)
        self.parameters = sum(weight.numel() for weight in self._model.parameters())
        self.stored, self._wide = self.parameters * itemsize, itemsize == 4
        self._targets = target_weights(self._model, find_targets(self._model, options.target_modules))
        self._rank = options.adapter_rank(sequences, config.hidden_size)
        self._sequences = max(sequences, options.heldout_sequences)
        length = options.sequence_length
        near = [min(of.EACH * sequences, of.MOST, of.MOST_TOKENS // length) for of in (variants, other_prompts)]
        self._said = 4 * (sequences + sum(near)) * length * config.hidden_size  # bytes: what a reference says of them
        head = self._model.get_output_embeddings().weight
        self._vocabulary, self._head = int(head.shape[0]), int(head.numel())
        self._gathered = max(
            4 * sum(weight.numel() for weight in module.parameters()) for module in gathered_modules(self._model)
        )
        self._peaks: dict[object, int] = {}

    def needs(self, options: Options, devices: int = 1) -> list[Need]:
        """The need of each stage with these settings, if so many devices share the weights."""
        sizes = [weight.numel() for weight in self._targets.values()]
        factors = 4 * self._rank * sum(sum(weight.shape) for weight in self._targets.values())
        distils = options.loss == DISTIL
        rows = options.batch_size if distils or not LOSSES[options.loss].alternates else 2 * options.batch_size
        batch = max(rows, options.retain_batch_size or 0, distil.LARGEST_BATCH if distils else 0)
        looks_ahead = distils and options.relearn_steps > 0
        copies = FACTORS + (AHEAD if looks_ahead else 0)
        moved = WHOLE * (4 * self.parameters + factors) if looks_ahead and moves_whole(self.parameters) else 0
        each = options.sequence_length * self._vocabulary
        logits, attacked = (CHUNKS * 4 * min(CHUNK_LOGITS, count * each) for count in (batch, BATCH))
        decoding = self._once(self._decoding, options.row_budget)
        decoding = max(decoding, self._once(self._decoding, LEAST_ROWS) + self._drawing(devices))
        plain = self._once(self._step, 0, fisher.BATCH, False) + logits
        adapted = self._once(self._step, self._rank, batch, options.checkpoint_activations) + logits
        relearned = options.attacks.get("relearned", "off") != "off"
        tested = max(decoding, self._once(self._step, RANK, BATCH, False) + attacked) if relearned else decoding
        together = REFERENCE_LOGITS if self.parameters <= reference.LARGEST_FRESH else 0
        learned = together * 4 * reference.BATCH * each + 2 * plain
        weights = self.stored if devices == 1 else self.stored // devices + self._gathered
        beside, said = (self.parameters * 4, self._said) if distils else (0, 0)  # the reference
        sums = min(fisher.most_bytes(self.stored), 2 * 4 * sum(sizes))
        few = SOME_WEIGHTS * 4 * max(sizes)
        bytes_of = {
            "measure": (weights, decoding),
            **({"reference": (weights + REFERENCE * beside, learned)} if beside else {}),
            "initialise": (weights + beside, max(sums + plain, few) + factors),
            "train": (weights + beside, max(adapted, decoding) + copies * factors + moved + said),
            "merge": (0, MERGED * factors),
            "verify": (weights, tested + few),
        }
        return [Need(stage, held, int(SLACK * (PRODUCT + other))) for stage, (held, other) in bytes_of.items()]

    def _without_numbers(self, config: PretrainedConfig) -> CausalLM:
        """The model, without memory."""
        with self._on_shapes(), torch.no_grad():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
            separate_experts(model)
            hidden_states(model, *_ids(1, 8), use_cache=False)
            return model

    @contextmanager
    def _on_shapes(self) -> Iterator[None]:
        """While active, tensors have no memory; whatever a family's code raises that looks at numbers is Unplanned."""
        try:
            with self._fake:
                yield
        except Exception as error:  # of any family's code
            raise Unplanned(f"this model's code does not run on shapes alone: {type(error).__name__}") from error

    def _once(self, peak: Callable[..., int], *key: object) -> int:
        """A peak, counted once."""
        if (peak.__name__, *key) not in self._peaks:
            with self._on_shapes():
                self._peaks[peak.__name__, *key] = peak(*key)
        return self._peaks[peak.__name__, *key]

    def _drawing(self, devices: int) -> int:
        """The bytes of drawing samples over those of decoding them: sums, and a float32 model's weights in 16 bits."""
        narrow = trains_in_bfloat16(self._options.train_dtype, resolve_device(self._options.device))
        copied = self.parameters if devices == 1 else self._gathered // 4 + self._head
        return DRAWN * 8 * LEAST_ROWS * self._vocabulary + (2 * copied if narrow and self._wide else 0)

    def _decoding(self, rows: int) -> int:
        """The bytes of decoding so many rows at once, each as long as a sequence."""
        model, length = self._model, self._options.sequence_length
        count = min(max(1, PREFILLED * rows // length), self._sequences)
        with LiveBytes(self._model) as counted, torch.no_grad():
            try:
                cache, name = DynamicCache(), cache_argument(model)
                hidden_states(model, *_ids(count, length), **{name: cache, "use_cache": True})
                wide, mask = row_cache(cache, [Row(0, length - 1, 2, [0], None)] * rows, 1, torch.device("cpu"))
                mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
                logits = model(_ids(rows, 1)[0], mask, position_ids=_ids(rows, 1)[0], **{name: wide}).logits
                logits[:, -1].argmax(-1)
            except Exception as error:  # whatever a family raises that has no such cache
                logger.info("the plan is for texts that are read again: %s", type(error).__name__)
                hidden_states(model, *_ids(rows, length), use_cache=False)
        return int(counted.peak)

    def _step(self, rank: int, batch: int, recomputed: bool) -> int:  # a part of the key
        """The bytes of a forward pass with a graph, and of its backward pass; with an adapter unless the rank is 0."""
        model, length = self._model, self._options.sequence_length
        hooks = [
            model.get_submodule(name).register_forward_hook(as_adapted(weight, rank) if rank else begin_graph)
            for name, weight in self._targets.items()
        ]
        try:
            with training(model, "float32", checkpoint_activations=recomputed), LiveBytes(model) as counted:
                hidden = hidden_states(model, *_ids(batch, length), use_cache=False)
                torch.autograd.backward(hidden, torch.ones_like(hidden))
        finally:
            for hook in hooks:
                hook.remove()
        return int(counted.peak)


def _ids(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids [b, s] and their mask."""
    input_ids = torch.zeros(rows, length, dtype=torch.long)
    return input_ids, torch.ones_like(input_ids)
