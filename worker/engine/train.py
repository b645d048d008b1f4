"""The training loop: forget loss plus retain cross-entropy, an epoch at a time, until the criterion holds."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from worker.engine.adapter import Adapter, State
from worker.engine.criterion import Judgement, Threshold, judge
from worker.engine.data import chunks, pad_batch
from worker.engine.device import device_of
from worker.engine.errors import TrainingDiverged, UnknownPlugin
from worker.engine.forget_set import ForgetSet
from worker.engine.losses import LOSSES
from worker.engine.losses.ascent import cross_entropy
from worker.engine.measure import extraction
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import RetainSampler


@dataclass(slots=True)
class Checkpoint:
    """A run after some epoch; everything random in the next one follows from the seed and its number.

    Attributes:
        epoch: Epochs done.
        adapter: The adapter's factors.
        optimiser: AdamW's state.
        history: One mapping an epoch.
        met: The criterion held after the last epoch.
    """

    epoch: int = 0
    adapter: State = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    met: bool = False


@dataclass(slots=True)
class Trainer:
    """One run's parts; `run` takes it from a checkpoint to the criterion or to the last epoch."""

    model: Any
    adapter: Adapter
    forget: ForgetSet
    limits: list[Threshold]
    retain: RetainSampler
    utility: list[list[int]]
    options: Options
    on_epoch: Callable[[Checkpoint], None] = lambda _: None
    progress: Callable[[float], None] = lambda _: None

    def run(self, resume: Checkpoint | None = None) -> Checkpoint:
        """Train until the criterion is met on the adapter or `max_epochs` are done.

        Args:
            resume: A checkpoint of the same run to go on from.

        Returns:
            The last checkpoint.

        Raises:
            TrainingDiverged: The loss is not finite any more.
            UnknownPlugin: `options.loss` names no loss.
        """
        if self.options.loss not in LOSSES:
            raise UnknownPlugin(f"loss: one of {', '.join(LOSSES)}")
        optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=self.options.learning_rate, weight_decay=0.0)
        point = resume or Checkpoint()
        if resume is not None:
            self.adapter.load(resume.adapter)
            optimiser.load_state_dict(resume.optimiser)
        while point.epoch < self.options.max_epochs and not point.met:
            started = time.monotonic()
            losses = self._epoch(optimiser, point.epoch)
            judgement, exact = self._judge()
            met = exact and judgement.passed
            entry = {
                "epoch": point.epoch + 1, **losses, "el": judgement.el, "el_exact": exact, "ma": judgement.ma,
                "el_limit": judgement.el_limit, "ma_limit": judgement.ma_limit, "met": met,
                "perplexity": perplexity(self.model, self.utility), "seconds": time.monotonic() - started,
            }  # fmt: skip
            point = Checkpoint(
                point.epoch + 1, self.adapter.state(), optimiser.state_dict(), [*point.history, entry], met
            )
            self.on_epoch(point)
        return point

    def _batches(self, epoch: int) -> Iterator[list[list[int]]]:
        """Forget batches of one epoch: whole passes until there are `min_epoch_steps` of them."""
        shuffled = random.Random(f"{self.options.seed}/forget/{epoch}")
        sequences = self._remaining() if self.options.skip_passed else self.forget.sequences
        a_pass = math.ceil(len(sequences) / self.options.batch_size)
        for _ in range(math.ceil(self.options.min_epoch_steps / a_pass)):
            yield from chunks(shuffled.sample(sequences, len(sequences)), self.options.batch_size)

    def _remaining(self) -> list[list[int]]:
        """Sequences whose MA is still over the held-out mean; all of them if none is (then EL is what fails)."""
        ma = [accuracy(row) for row in token_matches(self.model, self.forget.sequences)]
        over = [s for s, m, t in zip(self.forget.sequences, ma, self.limits, strict=True) if m > t.ma_mean]
        return over or self.forget.sequences

    def _epoch(self, optimiser: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
        """One epoch of optimiser steps; returns mean losses."""
        loss = LOSSES[self.options.loss]
        self.retain.start_epoch(epoch)
        self.model.eval()  # no dropout: LoRA has none, and a base's own would make a resumed run another one
        totals, batches = [0.0, 0.0], list(self._batches(epoch))
        for step, batch in enumerate(batches):
            optimiser.zero_grad()
            values = [self._backward(batch, lambda x, y: loss.function(x, y, margin=self.options.margin), 1.0)]
            if loss.uses_retain:
                sampled = self.retain.take(self.options.retain_batch_size or self.options.batch_size)
                values.append(self._backward(sampled, cross_entropy, self.options.retain_weight))
            if not all(map(math.isfinite, values)):
                raise TrainingDiverged(f"the loss is not finite in epoch {epoch + 1}")
            optimiser.step()
            totals = [t + v for t, v in zip(totals, [*values, 0.0], strict=False)]
            self.progress((epoch + (step + 1) / len(batches)) / self.options.max_epochs)
        forget, retain = (total / len(batches) for total in totals)
        return {"steps": len(batches), "loss": forget + retain, "forget_loss": forget, "retain_loss": retain}

    def _backward(self, sequences: list[list[int]], loss: Callable[..., torch.Tensor], weight: float) -> float:
        """Add one loss's gradients; returns its weighted value."""
        input_ids, mask, labels = (t.to(device_of(self.model)) for t in pad_batch(sequences))
        logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        value = weight * loss(logits, labels)
        torch.autograd.backward(value)
        return float(value.detach())

    def _judge(self) -> tuple[Judgement, bool]:
        """MA of all, exactly; EL of the `el_sample` sequences of highest MA, and of all before it says met.

        Returns the judgement and whether its EL is exact; otherwise its mean EL is the sample's.
        """
        ma = [accuracy(row) for row in token_matches(self.model, self.forget.sequences)]
        picked = sorted(range(len(ma)), key=lambda i: -ma[i])[: self.options.el_sample]
        sample = self._extraction(picked)
        assumed = [0.0] * len(ma)
        for i, value in zip(picked, sample, strict=True):
            assumed[i] = value
        judgement, exact = judge(self.forget, self.limits, assumed, ma), len(picked) == len(ma)
        if judgement.passed and not exact:
            return judge(self.forget, self.limits, self._extraction(range(len(ma))), ma), True
        return replace(judgement, el=sum(sample) / len(sample)), exact

    def _extraction(self, indices: Sequence[int]) -> list[float]:
        """EL of these sequences of the forget set."""
        sequences, limits = [self.forget.sequences[i] for i in indices], [self.limits[i] for i in indices]
        return extraction(self.model, sequences, limits, self.options)
