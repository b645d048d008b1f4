"""The training loop of `loss: distil`: on the forget set the model learns to say what a reference says.

Everywhere else it is to stay what it was. So on retain text, and on the parent's own samples, the divergence from the
parent and cross-entropy are added. The parent is the same model with the adapter at strength 0.

What is forgotten in this way may still be near: rounding the weights or a few steps of ordinary fine-tuning bring it
back. So every second step works with a random share of the change, which must suffice, too. And every fourth step looks
ahead: it adds the gradient of the forget loss at the place to which fine-tuning on what the parent knows would lead.
What is forgotten after its own words may be known after others, so their ends are learned after other prompts, too.

A model that never saw a text may still be over the criterion's limits by chance. So the reference itself is lowered
where it is over them (`worker.engine.lowering`), and the model learns to say what meets the criterion.

The number of steps is fixed beforehand, and the learning rate falls to nothing at their end. If the criterion is not
met then, epochs with a small learning rate follow (`worker.engine.schedule`). Most of them press: the reference is
lowered where the model is over the limits, and IHL, the paper's loss, is added on the tokens that are. Where the
criterion is met with too much harm, some epochs settle: they do neither, and keep more (`worker.engine.pace.settles`).
Every state depends on the seed, the number of the epoch and the checkpoint alone, so that a resumed run sees the same
batches.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from worker.engine.adapter import Adapter
from worker.engine.ahead import ahead
from worker.engine.calibration import Calibration
from worker.engine.checkpoint import Checkpoint
from worker.engine.criterion import Judgement, Threshold, judge, with_reserve
from worker.engine.device import training
from worker.engine.errors import TrainingDiverged
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import extraction_likelihoods
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.distil import distil_rows
from worker.engine.losses.rows import Beside, RowLoss, add_gradients
from worker.engine.lowering import Rows, rows_to_lower, with_numbers_last
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy
from worker.engine.metrics.token_scores import token_margins
from worker.engine.options import Options
from worker.engine.pace import harm, settles
from worker.engine.pressing import Pressed, extracted, failed_by_el, grouped
from worker.engine.probes import Answer, as_rows, still_said
from worker.engine.progress import Progress, no_progress
from worker.engine.reference import Reference
from worker.engine.samples import OwnSamples, RetainSampler, kept_batch
from worker.engine.schedule import Schedule, learning_rate
from worker.engine.step import kept_gradients
from worker.engine.types import CausalLM, EpochEntry
from worker.engine.utility import Watched
from worker.engine.variants import Variants

FORGET_BATCH, LARGEST_BATCH = 16, 20  # of a run, and with those of earlier ones
RELEARN_FROM, RELEARN_EVERY = 0.2, 4  # from this share of the steps on, every fourth step relearns
NEARBY_WEIGHT, SHIFT_RATE = 0.5, 0.7  # of variants, and of ends after other prompts; of what is measured
REFERENCE_RESERVE = 0.015  # of MA, beside the policy's: the model is right a little more often than what it learns from


@dataclass(slots=True)
class Distiller:
    """The distillation of one run; `run` continues it from a checkpoint to its end.

    Attributes:
        model: The model that the adapter is attached to.
        adapter: The adapter to train.
        forget: The sequences to forget, and those of earlier jobs, which must stay forgotten.
        thresholds: The threshold of each of these sequences.
        counted: The requests that the set criterion is over.
        reference: What the reference says about these sequences, their variants, `said` and `prompted`, in this order.
        variants: Sequences with other numbers than those of `forget`.
        compared: The same with still other numbers, which nothing is trained on.
        said: Answers that say a secret.
        prompted: The ends of the sequences, after other prompts.
        retain: The source of retain sequences.
        samples: The parent's own samples.
        watched: What else is measured after each epoch.
        options: The run's options.
        on_epoch: Called with each epoch's checkpoint.
        progress: Called with the fraction done of the fixed steps and of the most epochs after them, 0..1.
    """

    model: CausalLM
    adapter: Adapter
    forget: ForgetSet
    thresholds: list[Threshold]
    counted: Sequence[int]
    reference: Reference
    variants: Variants
    compared: Variants
    said: list[Answer]
    prompted: list[Answer]
    retain: RetainSampler
    samples: OwnSamples
    watched: Watched
    options: Options
    on_epoch: Callable[[Checkpoint], None] = lambda _: None
    progress: Progress = no_progress

    def run(self, resume: Checkpoint | None = None) -> Checkpoint:
        """Train the fixed steps, and then until criterion and limits are met on the adapter or the last epoch is done.

        Args:
            resume: A checkpoint of the same run to continue from.

        Returns:
            The last checkpoint: `met` if an epoch met the criterion, with the factors of the one of the least harm.

        Raises:
            TrainingDiverged: The loss is no longer finite.
        """
        optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=0.0, weight_decay=0.0)
        checkpoint = resume or Checkpoint()
        if resume is not None:
            self.adapter.load(resume.adapter)
            optimiser.load_state_dict(resume.optimiser)
        if checkpoint.correction:
            self.reference.load(checkpoint.gaps, checkpoint.shifts, checkpoint.correction)
        if not checkpoint.gaps:
            self._lower(self.reference.calibration(self.model))
        while checkpoint.epoch < self.options.distil_epochs or not (
            checkpoint.met or checkpoint.epoch == self.options.last_epoch
        ):
            entry, failed = self._run_epoch(optimiser, checkpoint)
            history, limits = [*checkpoint.history, entry], (self.options, self.watched.parent_perplexity)
            checkpoint = replace(
                checkpoint,
                epoch=checkpoint.epoch + 1,
                adapter=self.adapter.state(),
                optimiser=optimiser.state_dict(),
                history=history,
                met=bool(entry["met"]) and not settles(history, *limits),
                reopened=tuple(sorted(failed)),
                rows=tuple(self.forget.request_ids),
                **self.reference.state(len(self.forget.sequences)),
            ).with_passing(harm(entry, *limits))
            self.on_epoch(checkpoint)
        return checkpoint.ended(self.options.last_epoch)

    def _pressed(self, calibration: Calibration, failed: Sequence[int]) -> Pressed:
        """What to press on: what is over a limit, and what these requests failed a full test with."""
        rows = self._lower(calibration, token_margins(self.model, self.forget.sequences))
        numbers = self.compared.number_tokens(self.forget.sequences)
        said, _ = extracted(self.model, self.forget, self.thresholds, failed, self.options, numbers)
        if not rows and not said:
            rows = {(i, row) for i in self.forget.indices(failed) for row in range(len(self.forget.sequences[i]) - 1)}
        answers = [self.said[i] for i in still_said(self.model, self.said, self.options)]
        return Pressed(grouped(self.forget.sequences, rows), answers, said)

    def _lower(self, calibration: Calibration, margins: Sequence[Tensor] | None = None) -> Rows:
        """Lower the reference where these margins, or its own, miss the criterion, numbers last; returns the rows."""
        margins = margins or [self.reference.true_tokens(i, calibration)[0] for i in range(len(self.forget.sequences))]
        ordered = with_numbers_last(margins, self.compared.numbers)
        reserve = REFERENCE_RESERVE + self.options.reserve
        rows = rows_to_lower(self.forget, self.thresholds, ordered, self.counted, reserve)
        self.reference.lower(rows, calibration)
        return rows

    def _run_epoch(self, optimiser: torch.optim.Optimizer, before: Checkpoint) -> tuple[EpochEntry, set[int]]:
        """Train one epoch and measure; returns its history entry, and the requests that failed by EL alone."""
        started, epoch, options = time.monotonic(), before.epoch, self.options
        self.retain.start_epoch(epoch)
        order, schedule = random.Random(f"{options.seed}/distil/{epoch}"), Schedule.after(before, options)
        calibration, losses = self.reference.calibration(self.model), []
        pressed = self._pressed(calibration, before.reopened) if schedule.presses else Pressed()
        rates = [learning_rate(step, options, self.model.config.hidden_size) for step in schedule.steps]
        for step, rate in zip(schedule.steps, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate
            losses.append(self._step(optimiser, order, step, calibration, pressed, schedule.keeping))
            self.progress(schedule.done(step, options))
        if not all(map(math.isfinite, losses)):
            raise TrainingDiverged(f"the loss is not finite in epoch {epoch + 1}")
        self.reference.correct(self.model)
        for i, rows, excess in self.compared.excess(self.model, self.forget.sequences):
            self.reference.shift(i, rows, -SHIFT_RATE * excess)
        judgement, met, failed = self._judge(may_end=epoch + 1 >= options.distil_epochs)
        entry: EpochEntry = {
            "epoch": epoch + 1,
            "steps": len(losses),
            "loss": sum(losses) / len(losses),
            **judgement.means(),
            "met": met,
            "strength": 1.0,
            "learning_rate": max(rates),
            "rank": self.adapter.rank,
            **self.watched.measure(self.model),
            "seconds": time.monotonic() - started,
        }
        return entry, failed

    def _judge(self, *, may_end: bool) -> tuple[Judgement, bool, set[int]]:
        """The judgement, whether it passes, and who fails by EL alone. EL is a lower bound unless it decides."""
        matches = [(margins > 0).tolist() for margins in token_margins(self.model, self.forget.sequences)]
        ma = [accuracy(row) for row in matches]
        reserved = with_reserve(ma, self.options.reserve)
        el = [lower_bound(row, threshold.n) for row, threshold in zip(matches, self.thresholds, strict=True)]
        met, failed = may_end and judge(self.forget, self.thresholds, el, reserved, counted=self.counted).passed, set()
        met = met and not still_said(self.model, self.said, self.options)
        if met:
            el = extraction_likelihoods(self.model, self.forget.sequences, self.thresholds, self.options)
            judgement = judge(self.forget, self.thresholds, el, reserved, counted=self.counted)
            met = judgement.passed
            failed = failed_by_el(judgement, self.forget, self.counted)
        return judge(self.forget, self.thresholds, el, ma, counted=self.counted), met, failed

    def _step(
        self,
        optimiser: torch.optim.Optimizer,
        order: random.Random,
        step: int,
        toward: Calibration,
        pressed: Pressed,
        keeping: float,
    ) -> float:
        """One optimiser step; returns its loss. What is pressed has IHL in addition; `keeping` weighs what is kept."""
        indices = self._forget_batch(order)
        distil = partial(distil_rows, token_weight=self.options.token_weight, calibration=toward)
        forget = [self.forget.sequences[i] for i in indices]
        kept = kept_batch(self.retain, self.samples.every, self.options.retain_batch_size or FORGET_BATCH, order)
        strength = order.uniform(self.options.least_strength, 1.0) if step % 2 else 1.0
        self.adapter.set_strength(strength)
        optimiser.zero_grad()
        loss = self._backward(forget, distil, 1.0, self.reference.beside(indices))
        loss += pressed.add_gradients(order, self._backward, self.options.most_tokens)
        varied, own = [Answer(ids, 1) for ids in self.variants.sequences], len(self.forget.sequences)
        loss += self._step_on_some(order, distil, own, varied)
        if step < self.options.distil_steps:  # later what the reference guesses would come back
            tokens = sum(map(len, forget)) - len(forget)
            loss += self._step_on_some(order, distil, own + len(varied), self.said, among=tokens)
            loss += self._step_on_some(order, distil, own + len(varied) + len(self.said), self.prompted)
        with self._training():
            options = self.options.keeping(keeping)
            loss += kept_gradients(self.model, self.adapter, kept, options, strength, by_sequences=True)
        if self.options.relearn_steps and self._relearns(step):
            steps = order.randint(1, self.options.relearn_steps)
            with ahead(self.model, self.adapter.parameters(), steps, partial(self._fine_tune, order)):
                loss += self._backward(forget, distil, 1.0, self.reference.beside(indices))
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        optimiser.step()
        self.adapter.set_strength(1.0)
        return loss

    def _step_on_some(
        self, order: random.Random, row_loss: RowLoss, first: int, some: Sequence[Answer], among: int = 0
    ) -> float:
        """Add the gradients of some sequences, which the reference has from `first` on; returns their loss."""
        drawn = order.sample(range(len(some)), min(FORGET_BATCH // 2, len(some)))
        if not drawn:
            return 0.0
        rows, starts = as_rows([some[i] for i in drawn])
        counted = sum(map(len, rows)) - sum(starts)
        weight = min(1.0, counted / among) if among else NEARBY_WEIGHT  # a token counts as one of so many
        return self._backward(rows, row_loss, weight, self.reference.beside([first + i for i in drawn], starts), starts)

    def _forget_batch(self, order: random.Random) -> list[int]:
        """Sequences of this run, and a quarter as many of earlier ones, which must stay forgotten."""
        own = self.forget.indices(self.counted)
        earlier = self.forget.indices([request for request in self.forget.requests if request not in self.counted])
        drawn = order.sample(own, min(FORGET_BATCH, len(own)))
        return [*drawn, *order.sample(earlier, min(math.ceil(len(drawn) / 4), len(earlier)))]

    def _backward(
        self,
        sequences: Sequence[list[int]],
        row_loss: RowLoss,
        weight: float,
        beside: Beside | None = None,
        starts: Sequence[int] | None = None,
        rows: Sequence[Sequence[int]] | None = None,
    ) -> float:
        """Add one loss's gradients; returns its weighted value."""
        with self._training():
            return add_gradients(self.model, sequences, row_loss, weight, beside, starts, rows)

    def _training(self) -> AbstractContextManager[None]:
        options = self.options
        return training(self.model, options.train_dtype, checkpoint_activations=options.checkpoint_activations)

    def _fine_tune(self, order: random.Random) -> float:
        """Add the gradients of a step of fine-tuning on what the parent knows, or on retain text; returns its loss."""
        texts = self.samples.known or self.retain.sample(FORGET_BATCH)
        return self._backward(order.sample(texts, min(FORGET_BATCH, len(texts))), cross_entropy_rows, 1.0)

    def _relearns(self, step: int) -> bool:
        return step >= RELEARN_FROM * self.options.distil_steps and step % RELEARN_EVERY == 0
