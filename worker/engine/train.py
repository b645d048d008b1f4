"""The training loop: a forget loss and what it adds on retain text, until the criterion holds and its harm is repaired.

MA is one forward pass, so it is measured several times an epoch: every step past the criterion does damage. EL costs a
decoding. It is measured only where MA and the lower bound of EL that the same pass gives for free would pass, and on a
sample. Certified values are measured on all sequences, on the merged model.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from worker.engine.adapter import Adapter
from worker.engine.checkpoint import Checkpoint
from worker.engine.criterion import Judgement, Threshold, judge, with_reserve
from worker.engine.device import training
from worker.engine.errors import TrainingDiverged, UnknownPlugin
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.losses import LOSSES
from worker.engine.losses.rows import add_gradients
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import Options
from worker.engine.pace import harm, pace
from worker.engine.pressing import MOST_DECODED, Pressed, extracted, failed_by_el
from worker.engine.probes import Answer, still_said
from worker.engine.progress import Progress, no_progress
from worker.engine.samples import RetainSampler, kept_batch
from worker.engine.step import forget_gradients, retain_gradients
from worker.engine.sure import LostRows, Sure, restore
from worker.engine.types import CausalLM, EpochEntry
from worker.engine.utility import Watched

BISECTIONS = 5  # of the strength: it is found to a 32nd of the change


@dataclass(slots=True)
class Trainer:
    """The training of one run; `run` continues it from a checkpoint to the criterion or to the last epoch.

    Attributes:
        model: The model that the adapter is attached to.
        adapter: The adapter to train.
        forget: The sequences to forget, and those of earlier jobs, which must stay forgotten.
        thresholds: The threshold of each of these sequences.
        counted: The requests that the set criterion is over; the others (earlier ones) have a verdict only.
        retain: The source of retain sequences.
        watched: What else is measured after each epoch, for the history and the pace.
        options: The run's options.
        on_epoch: Called with each epoch's checkpoint.
        progress: Called with the fraction of `max_epochs` done, 0..1.
        said: Answers that say a secret; IHL works on those that the model still gives, whatever the loss.
        samples: The parent's own samples, for a loss that prefers them or holds the model near its parent.
    """

    model: CausalLM
    adapter: Adapter
    forget: ForgetSet
    thresholds: list[Threshold]
    counted: Sequence[int]
    retain: RetainSampler
    watched: Watched
    options: Options
    on_epoch: Callable[[Checkpoint], None] = lambda _: None
    progress: Progress = no_progress
    said: list[Answer] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    _reopened: set[int] = field(default_factory=set)
    _tested: bool = False
    _repairs: bool = False
    _keeps: bool = False
    _last_measurement: tuple[list[float], list[float]] | None = None
    _still_said: list[int] = field(default_factory=list)
    _extracted: list[Answer] = field(default_factory=list)
    _pressed: set[int] = field(default_factory=set)

    def run(self, resume: Checkpoint | None = None) -> Checkpoint:
        """Train until the criterion is met on the adapter or `max_epochs` are done.

        Args:
            resume: A checkpoint of the same run to continue from.

        Returns:
            The last checkpoint, with the factors that met the criterion with the least harm, if any did.

        Raises:
            TrainingDiverged: The loss is no longer finite.
            UnknownPlugin: `options.loss` names no loss.
        """
        if self.options.loss not in LOSSES:
            raise UnknownPlugin(f"loss: one of {', '.join(LOSSES)}")
        optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=self.options.learning_rate, weight_decay=0.0)
        checkpoint = resume or Checkpoint()
        self._reopened, self._tested = set(checkpoint.reopened), checkpoint.verified > 0
        self.adapter.set_strength(1.0)
        if resume is not None:
            self.adapter.load(resume.adapter)
            if resume.optimiser:
                optimiser.load_state_dict(resume.optimiser)
        pace_after = partial(pace, options=self.options, parent_perplexity=self.watched.parent_perplexity)
        while checkpoint.epoch < self.options.max_epochs and not checkpoint.met:
            rate, longer, self._repairs, self._keeps = pace_after(checkpoint.history)
            for group in optimiser.param_groups:
                group["lr"] = rate
            entry = self._run_epoch(optimiser, checkpoint.epoch, longer)
            entry |= {"learning_rate": rate, "rank": self.adapter.rank, "repairs": self._repairs, "keeps": self._keeps}
            history = [*checkpoint.history, entry]
            following = pace_after(history)
            checkpoint = replace(
                checkpoint,
                epoch=checkpoint.epoch + 1,
                adapter=self.adapter.state(),
                optimiser=optimiser.state_dict(),
                history=history,
                met=bool(entry["met"]) and not (following.repairs or following.keeps),
                strength=entry["strength"],
                reopened=tuple(sorted(self._reopened)),
            ).with_passing(harm(entry, self.options, self.watched.parent_perplexity))
            self.on_epoch(checkpoint)
        return checkpoint.ended(self.options.max_epochs)

    def _run_epoch(self, optimiser: torch.optim.Optimizer, epoch: int, longer: int) -> EpochEntry:
        """Train one epoch and decide whether to stop; returns its history entry, the adapter at full strength."""
        started, presses = time.monotonic(), self.options.holds_parent and not self._keeps
        reopened = sorted(self._reopened) if presses else []
        self._extracted, self._pressed = extracted(self.model, self.forget, self.thresholds, reopened, self.options)
        losses = self._take_steps(optimiser, epoch, longer)
        judgement, met, strength = self._choose_strength()
        entry: EpochEntry = {
            "epoch": epoch + 1,
            **losses,
            **judgement.means(),
            "met": met,
            "strength": strength,
            **self.watched.measure(self.model),
            "seconds": time.monotonic() - started,
        }
        self.adapter.set_strength(1.0)
        self._last_measurement = None  # it may be of another strength
        return entry

    def _take_steps(self, optimiser: torch.optim.Optimizer, epoch: int, longer: int) -> dict[str, float]:
        """Optimiser steps over the whole set, or until MA passes; returns their number and the mean losses.

        While something is pressed on, or repaired, all steps are taken: MA does not tell whether they suffice.
        """
        self.retain.start_epoch(epoch)
        order, of_step = (random.Random(f"{self.options.seed}/{name}/{epoch}") for name in ("forget", "step"))
        queue, losses = list[int](), list[tuple[float, float]]()
        steps = max(self.options.min_epoch_steps, math.ceil(len(self._training_indices()) / self.options.batch_size))
        steps_per_check, steps = math.ceil(steps / self.options.epoch_checks), steps * longer
        sure = Sure.of_parent(self.model, self.adapter, self.samples) if self._keeps else Sure()
        lost = sure.lost(self.model, of_step)
        for step in range(1, steps + 1):
            if not queue:
                indices = [] if self._keeps else self._training_indices()
                queue = order.sample(indices, len(indices))
            batch, queue = queue[: self.options.batch_size], queue[self.options.batch_size :]
            forget_loss, retain_loss = self._optimiser_step(
                optimiser, [self.forget.sequences[i] for i in batch], of_step, lost
            )
            if not (math.isfinite(forget_loss) and math.isfinite(retain_loss)):
                raise TrainingDiverged(f"the loss is not finite in epoch {epoch + 1}")
            losses.append((forget_loss, retain_loss))
            self.progress((epoch + step / steps) / self.options.max_epochs)
            if step % steps_per_check == 0 and step < steps:
                (el, ma), lost = self._measure(), sure.lost(self.model, of_step)
                if self._passes_with_reserve(el, ma) and not (self._extracted or self._repairs or self._keeps):
                    break
                remaining = set(self._training_indices())
                queue = [i for i in queue if i in remaining]
        forget, retain = (sum(values) / len(losses) for values in zip(*losses, strict=True))
        return {"steps": len(losses), "loss": forget + retain, "forget_loss": forget, "retain_loss": retain}

    def _training_indices(self) -> list[int]:
        """The sequences to train on.

        These are the sequences whose MA or EL bound is over its goal, and those of requests that failed the full test;
        and all counted ones if there are none of these, or without `skip_passed`, but in an epoch that repairs. While
        something is pressed on, what it was extracted from needs no other training.
        """
        everything, request_ids = range(len(self.forget.sequences)), self.forget.request_ids
        counted = set(self.forget.indices(self.counted))
        el_bounds, ma = self._last_measurement or self._measure()
        judgement = self._judge_with_reserve(el_bounds, ma)
        el_passes, ma_passes = judgement.el <= judgement.el_limit, judgement.ma <= judgement.ma_limit
        goals = [self._goal(i, el_passes, ma_passes) for i in everything]
        reserved = with_reserve(ma, self.options.reserve)
        selected = {i for i in everything if el_bounds[i] > goals[i][0] or reserved[i] > goals[i][1]}
        selected |= {i for i in everything if request_ids[i] in self._reopened} - self._pressed
        if not (self.options.skip_passed or self._repairs):
            selected |= counted
        return sorted(selected if self._extracted or self._repairs else selected or counted)

    def _goal(self, index: int, el_passes: bool, ma_passes: bool) -> tuple[float, float]:
        """The EL and MA that training should bring a sequence to.

        They are the held-out means, which the set criterion uses. They are the 95th percentiles, which the verdicts
        use, once the set's mean passes, and always for an earlier request, which has a verdict only.
        """
        threshold, earlier = self.thresholds[index], self.forget.request_ids[index] not in self.counted
        return (
            threshold.el_p95 if earlier or el_passes else threshold.el_mean,
            threshold.ma_p95 if earlier or ma_passes else threshold.ma_mean,
        )

    def _optimiser_step(
        self, optimiser: torch.optim.Optimizer, batch: list[list[int]], order: random.Random, lost: LostRows
    ) -> tuple[float, float]:
        """One optimiser step; returns the forget and the retain loss, means over tokens."""
        forget_loss, options, retain_value = LOSSES[self.options.loss], self.options, 0.0
        optimiser.zero_grad()
        with training(self.model, options.train_dtype, checkpoint_activations=options.checkpoint_activations):
            prefers = forget_loss.alternates
            others = order.choices(self.samples or self.retain.sample(len(batch)), k=len(batch)) if prefers else []
            forget_value = forget_gradients(self.model, self.adapter, batch, others, options) if batch else 0.0
            if not self._keeps:
                pressed = Pressed([], [self.said[i] for i in self._still_said], self._extracted)
                forget_value += pressed.add_gradients(order, partial(add_gradients, self.model), options.most_tokens)
            if forget_loss.retain:
                size = options.retain_batch_size or options.batch_size
                kept = kept_batch(self.retain, self.samples if options.holds_parent else [], size, order)
                retain_value = retain_gradients(self.model, self.adapter, kept, options)
                retain_value += restore(self.model, lost, order, options)
        optimiser.step()
        return forget_value, retain_value

    def _measure(self) -> tuple[list[float], list[float]]:
        """A lower bound of EL, and MA, of each sequence, and which answers are still given: forward passes alone."""
        matches = token_matches(self.model, self.forget.sequences)
        el_bounds = [lower_bound(row, threshold.n) for row, threshold in zip(matches, self.thresholds, strict=True)]
        self._still_said = still_said(self.model, self.said, self.options)
        self._last_measurement = el_bounds, [accuracy(row) for row in matches]
        return self._last_measurement

    def _judge_with_reserve(self, el: Sequence[float], ma: Sequence[float]) -> Judgement:
        """The judgement of these values, the options' reserve added to MA."""
        return judge(self.forget, self.thresholds, el, with_reserve(ma, self.options.reserve), counted=self.counted)

    def _passes_with_reserve(self, el: Sequence[float], ma: Sequence[float]) -> bool:
        """Whether these values pass with the options' reserve, and no answer is still given."""
        return not self._still_said and self._judge_with_reserve(el, ma).passed

    def _choose_strength(self) -> tuple[Judgement, bool, float]:
        """Decide whether training may stop, and at which strength, the share of the change that is applied.

        MA of all sequences comes first. If it passes, EL is measured at the least strength at which MA still passes,
        then half-way between it and the whole change, then at the whole change, until it passes. If it never does, the
        requests of the highest EL are reopened.

        Returns:
            The judgement, whether it passes with reserve, and the strength, which the adapter keeps.
        """
        el, ma = self._measure()
        met, strengths = self._passes_with_reserve(el, ma), [1.0]
        if met and self.options.shrink and not self._tested:
            least = self._least_strength()
            strengths = sorted({least, (least + 1) / 2, 1.0})
        for strength in strengths:
            self.adapter.set_strength(strength)
            el, ma = self._measure()
            if met:
                el = self._with_el_sample(el, ma)
            judgement = judge(self.forget, self.thresholds, el, ma, counted=self.counted)
            if self._passes_with_reserve(el, ma):
                return judgement, True, strength
        if met and self.options.holds_parent:
            self._reopened |= failed_by_el(judgement, self.forget, self.counted)
        return judgement, False, strength

    def _with_el_sample(self, el_bounds: list[float], ma: Sequence[float]) -> list[float]:
        """The lower bounds, with EL itself for `el_sample` or more sequences that are likeliest to have any.

        All sequences of reopened requests come first. Some others follow; more of them once a full test has failed.
        """
        reopened = [request_id in self._reopened for request_id in self.forget.request_ids]
        more = MOST_DECODED if self._tested else min(2 * sum(reopened), MOST_DECODED)
        count = max(self.options.el_sample, sum(reopened), more if self.options.holds_parent else 0)
        likeliest = sorted(range(len(ma)), key=lambda i: (not reopened[i], -el_bounds[i], -ma[i]))[:count]
        sequences, thresholds = [self.forget.sequences[i] for i in likeliest], [self.thresholds[i] for i in likeliest]
        el = extraction_likelihoods(self.model, sequences, thresholds, self.options)
        measured = dict(zip(likeliest, el, strict=True))
        return [measured.get(i, bound) for i, bound in enumerate(el_bounds)]

    def _least_strength(self) -> float:
        """The smallest strength at which MA passes with reserve, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self.adapter.set_strength(middle)
            low, high = (low, middle) if self._passes_with_reserve(*self._measure()) else (middle, high)
        return high
