"""The training loop: forget loss plus retain cross-entropy, until the criterion holds and no step further.

MA is one forward pass, so it is measured several times an epoch: every step past the criterion only does damage.
EL costs a decoding, so it is asked only where MA and the lower bound that MA's pass gives for free allow it, and
on a sample; what is certified is measured on everything, on the merged model.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from worker.engine.adapter import Adapter, State
from worker.engine.criterion import Judgement, Threshold, judge
from worker.engine.data import pad_batch
from worker.engine.device import model_device, training
from worker.engine.errors import TrainingDiverged, UnknownPlugin
from worker.engine.forget_set import ForgetSet
from worker.engine.head import Head, hidden_states
from worker.engine.losses import LOSSES
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import RowRule, of_hidden
from worker.engine.measure import ArtefactReport, extraction
from worker.engine.merge import shrunk
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import perplexity
from worker.engine.options import Options
from worker.engine.prepare import RetainSampler

BISECTIONS = 5  # of the share of the change that is applied: to a 32nd of it


@dataclass(slots=True)
class Checkpoint:
    """A run after some epoch; everything random in the next one follows from the seed and its number.

    Attributes:
        epoch: Epochs done.
        adapter: The adapter's factors.
        optimiser: AdamW's state.
        history: One mapping an epoch.
        met: The criterion held when training stopped.
        strength: The share of the change that is applied; less than 1 where less suffices.
        reopened: Requests that failed the test of the whole after training's sample had passed.
        verified: How often that happened.
    """

    epoch: int = 0
    adapter: State = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    met: bool = False
    strength: float = 1.0
    reopened: tuple[int, ...] = ()
    verified: int = 0

    @property
    def final(self) -> State:
        """The factors that are merged: the adapter's, at the share that suffices."""
        return shrunk(self.adapter, self.strength)

    def reopen(self, report: ArtefactReport, max_epochs: int) -> "Checkpoint | None":
        """Where to go on if the test of the whole failed what training's sample had passed.

        First the whole change is applied instead of a share of it; then training goes on, and looks at the requests
        that failed.

        Args:
            report: What `measure_after` said of the merged model.
            max_epochs: The run's.

        Returns:
            A checkpoint, or None if no further training would help.
        """
        after = report.after
        failed = {v.request for v in [*report.per_record, *report.earlier] if not v.passed}
        trained = {v.request for v in [*after.verdicts, *report.earlier]}
        untested = report.reason not in ("criterion_missed", "earlier_request_regressed")
        if untested or not self.met or (failed and not failed & trained):
            return None
        failed = failed & trained or {v.request for v in after.verdicts if v.el > after.el_limit}
        again = replace(self, reopened=tuple(sorted(failed)), verified=self.verified + 1)
        if self.strength < 1:
            return replace(again, strength=1.0)
        return replace(again, met=False) if self.epoch < max_epochs else None


@dataclass(slots=True)
class Trainer:
    """One run's parts; `run` takes it from a checkpoint to the criterion or to the last epoch.

    Attributes:
        model: The model that the adapter is attached to.
        adapter: What is trained.
        forget: What is to be forgotten, and what earlier jobs made it forget, which must stay so.
        thresholds: The threshold of each of its sequences.
        counted: The requests that the set criterion is over; the others (earlier ones) have a verdict only.
        retain: Where retain sequences come from.
        utility: Held-out sequences, for the perplexity in the history.
        options: The run's options.
        on_epoch: Told each epoch's checkpoint.
        progress: Told the fraction of `max_epochs` done, 0..1.
    """

    model: Any
    adapter: Adapter
    forget: ForgetSet
    thresholds: list[Threshold]
    counted: Sequence[int]
    retain: RetainSampler
    utility: list[list[int]]
    options: Options
    on_epoch: Callable[[Checkpoint], None] = lambda _: None
    progress: Callable[[float], None] = lambda _: None
    _failed: set[int] = field(default_factory=set)
    _last: tuple[list[float], list[float]] | None = None

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
        self._failed = set(point.reopened)
        self.adapter.apply_share(1.0)
        if resume is not None:
            self.adapter.load(resume.adapter)
            optimiser.load_state_dict(resume.optimiser)
        while point.epoch < self.options.max_epochs and not point.met:
            started = time.monotonic()
            losses = self._epoch(optimiser, point.epoch)
            judgement, met, strength = self._decide()
            entry = {
                "epoch": point.epoch + 1, **losses, "el": judgement.el, "ma": judgement.ma,
                "el_limit": judgement.el_limit, "ma_limit": judgement.ma_limit, "met": met, "strength": strength,
                "perplexity": perplexity(self.model, self.utility), "seconds": time.monotonic() - started,
            }  # fmt: skip
            self.adapter.apply_share(1.0)
            point = Checkpoint(
                point.epoch + 1, self.adapter.state(), optimiser.state_dict(), [*point.history, entry], met, strength,
                point.reopened, point.verified,
            )  # fmt: skip
            self.on_epoch(point)
        return point

    def _epoch(self, optimiser: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
        """Optimiser steps until the set was passed over or MA passes; returns their number and the mean losses."""
        self.retain.start_epoch(epoch)
        order = random.Random(f"{self.options.seed}/forget/{epoch}")
        queue: list[int] = []
        steps = max(self.options.min_epoch_steps, math.ceil(len(self._wanted()) / self.options.batch_size))
        every = math.ceil(steps / self.options.epoch_checks)
        forget, retain = [], []
        for step in range(1, steps + 1):
            if not queue:
                wanted = self._wanted()
                queue = order.sample(wanted, len(wanted))
            batch, queue = queue[: self.options.batch_size], queue[self.options.batch_size :]
            values = self._step(optimiser, [self.forget.sequences[i] for i in batch])
            if not all(map(math.isfinite, values)):
                raise TrainingDiverged(f"the loss is not finite in epoch {epoch + 1}")
            forget.append(values[0])
            retain.append(values[1])
            self.progress((epoch + step / steps) / self.options.max_epochs)
            if step % every == 0 and step < steps:
                el, ma = self._measure()
                if self._passes(el, ma):
                    break
                left = set(self._wanted())
                queue = [i for i in queue if i in left]
        means = {"forget_loss": sum(forget) / len(forget), "retain_loss": sum(retain) / len(retain)}
        return {"steps": len(forget), "loss": sum(means.values()), **means}

    def _wanted(self) -> list[int]:
        """Sequences to train on: with `skip_passed` those whose MA or EL bound is over what they should reach, or that
        failed the test of the whole; else all, and of earlier requests those.

        That is the mean that the set is held against; once the set is under it, what its own verdict asks.
        """
        everything, request_ids = range(len(self.forget.sequences)), self.forget.request_ids
        counted = {i for i in everything if request_ids[i] in self.counted}
        bounds, ma = self._last or self._measure()
        found = self._judge(bounds, ma)
        aims = [self._aim(i, found.el <= found.el_limit, found.ma <= found.ma_limit) for i in everything]
        over = {i for i in everything if bounds[i] > aims[i][0] or ma[i] + self.options.reserve > aims[i][1]}
        over |= {i for i in everything if request_ids[i] in self._failed}
        if not self.options.skip_passed:
            over |= counted
        return sorted(over or counted)

    def _aim(self, index: int, el_passes: bool, ma_passes: bool) -> tuple[float, float]:
        """EL and MA to reach: the held-out means, or their 95th percentiles where only its verdict holds a sequence."""
        limit, earlier = self.thresholds[index], self.forget.request_ids[index] not in self.counted
        return (
            limit.el_p95 if earlier or el_passes else limit.el_mean,
            limit.ma_p95 if earlier or ma_passes else limit.ma_mean,
        )

    def _step(self, optimiser: torch.optim.Optimizer, batch: list[list[int]]) -> tuple[float, float]:
        """One optimiser step; returns the forget and the retain loss, means over tokens."""
        loss, retain = LOSSES[self.options.loss], 0.0
        rule = partial(loss.rows, margin=self.options.margin)
        optimiser.zero_grad()
        with training(self.model, self.options.train_dtype, checkpoint_activations=self.options.checkpoint_activations):
            forget = self._backward(batch, rule, 1.0)
            if loss.uses_retain:
                sampled = self.retain.take(self.options.retain_batch_size or self.options.batch_size)
                retain = self._backward(sampled, cross_entropy_rows, self.options.retain_weight)
        optimiser.step()
        return forget, retain

    def _backward(self, sequences: list[list[int]], rule: RowRule, weight: float) -> float:
        """Add one loss's gradients; returns its weighted value."""
        input_ids, mask, labels = (t.to(model_device(self.model)) for t in pad_batch(sequences))
        hidden = hidden_states(self.model, input_ids, mask, use_cache=False)
        count = sum(len(ids) - 1 for ids in sequences)
        value = of_hidden(Head(self.model), hidden, labels, rule) * (weight / count)
        torch.autograd.backward(value)
        return float(value.detach())

    def _measure(self) -> tuple[list[float], list[float]]:
        """A lower bound of EL, and MA, of each sequence: one forward pass."""
        matches = token_matches(self.model, self.forget.sequences)
        bounds = [lower_bound(row, limit.n) for row, limit in zip(matches, self.thresholds, strict=True)]
        self._last = bounds, [accuracy(row) for row in matches]
        return self._last

    def _judge(self, el: Sequence[float], ma: Sequence[float]) -> Judgement:
        """The judgement of these values, the options' reserve added to MA."""
        reserved = [value + self.options.reserve for value in ma]
        return judge(self.forget, self.thresholds, el, reserved, counted=self.counted)

    def _passes(self, el: Sequence[float], ma: Sequence[float]) -> bool:
        """Whether these values pass with the options' reserve."""
        return self._judge(el, ma).passed

    def _decide(self) -> tuple[Judgement, bool, float]:
        """Whether to stop, at which share of the change.

        MA of all comes first. If it passes, the least share of the change at which it still does is held against
        EL, if that fails one half-way between it and the whole change, and then the whole change.

        Returns:
            The judgement, whether it passes with reserve, and the share, which the adapter is left at.
        """
        el, ma = self._measure()
        met, shares = self._passes(el, ma), [1.0]
        if met and self.options.shrink and not self._failed:
            least = self._least_share()
            shares = sorted({least, (least + 1) / 2, 1.0})
        for strength in shares:
            self.adapter.apply_share(strength)
            el, ma = self._measure()
            if met:
                el = self._sampled(el, ma)
            judgement = judge(self.forget, self.thresholds, el, ma, counted=self.counted)
            if self._passes(el, ma):
                break
        return judgement, self._passes(el, ma), strength

    def _sampled(self, el: list[float], ma: Sequence[float]) -> list[float]:
        """The lower bounds `el` with EL itself for the `el_sample` sequences that are likeliest to have any."""
        failed = [request_id in self._failed for request_id in self.forget.request_ids]
        count = max(self.options.el_sample, sum(failed))
        likeliest = sorted(range(len(ma)), key=lambda i: (not failed[i], -el[i], -ma[i]))[:count]
        sequences, thresholds = [self.forget.sequences[i] for i in likeliest], [self.thresholds[i] for i in likeliest]
        measured = dict(zip(likeliest, extraction(self.model, sequences, thresholds, self.options), strict=True))
        return [measured.get(i, bound) for i, bound in enumerate(el)]

    def _least_share(self) -> float:
        """The smallest share of the change at which MA passes with reserve, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self.adapter.apply_share(middle)
            low, high = (low, middle) if self._passes(*self._measure()) else (middle, high)
        return high
