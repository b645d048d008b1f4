"""The reference of distillation: what a model that never saw the forget set says about it.

A reference is a model of its own, trained on retain text and on held-out text that nothing is measured on. It begins
from the model that the customer's fine-tuning began from, if one is registered, and keeps its token embeddings and its
head. Otherwise it begins from nothing, which only suits small models. It need not be as good as the parent: it only has
to say what anybody could guess. A parent that was trained for long may be surer of unseen text than the reference, or
less sure. So what the reference says about the true tokens is calibrated by both on unseen text.

n: rows (predicted tokens), h: hidden, v: vocabulary
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from worker.engine.attacks.scores import LEVEL, rank_test
from worker.engine.attacks.subject import cut_alike
from worker.engine.calibration import Calibration, Correction, Profile, parts_for
from worker.engine.data import chunks, pad_batch
from worker.engine.device import measuring, model_device, training
from worker.engine.errors import NoReference, TrainingDiverged
from worker.engine.experts import join_experts
from worker.engine.head import Head, hidden_states
from worker.engine.heldout import FEWEST_TOKENS
from worker.engine.losses.ascent import cross_entropy, cross_entropy_rows
from worker.engine.losses.rows import Beside, add_gradients
from worker.engine.lowering import Rows
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import mean_loss
from worker.engine.metrics.token_scores import margin_rows, scores_of_rows
from worker.engine.options import Options
from worker.engine.prepare import Prepared
from worker.engine.progress import Progress, no_progress
from worker.engine.types import CausalLM

LARGEST_FRESH = 30_000_000  # parameters of a model that can be learned from retain text alone
FRESH_STEPS, BASE_STEPS = 400, 60  # a base knows the language, and learns what the texts are like
CHECK_STEPS, BATCH = 10, 16
MOST_TOGETHER, MOST_OVER_UNSEEN = 0.1, 0.2  # of MA; what is known by heart is far over them
FRESH_RATE, BASE_RATE = 3e-3, 1e-4
MOST_SHIFTED = 3.0  # nats
GAP = 0.5  # nats; each time that a row is lowered
MOST_OVER_BEST = 0.9  # nats a token; models that had unlearned were 0.3 to 0.6 over the best (bench/TRIED.md)


def train_reference(
    parent: CausalLM, base: CausalLM | None, data: Prepared, options: Options, progress: Progress = no_progress
) -> CausalLM:
    """A model that never saw the forget set.

    It is trained on retain text, and on held-out text that nothing is measured on. The text that sets thresholds
    becomes likelier, and then less likely again, as the reference learns its own texts by heart. The result is the
    state whose loss on it is nearest to the parent's: where the parent has become too sure of what it cannot know,
    whoever looks at whole distributions would see a reference that has not. But a parent whose loss is far over the
    reference's best loses most of that excess while it unlearns. So the loss that is wanted is at most MOST_OVER_BEST
    over the best.

    Args:
        parent: The model that unlearns.
        base: The model that its fine-tuning began from; it is trained in place. None begins from nothing.
        data: The sets of the run.
        options: The run's options.
        progress: Called with the fraction done, 0..1.

    Returns:
        The reference.

    Raises:
        NoReference: There is no base, and the model is too large to be learned from nothing.
        TrainingDiverged: The loss is no longer finite.
    """
    if base is None and sum(parameter.numel() for parameter in parent.parameters()) > LARGEST_FRESH:
        raise NoReference("base: a model of this size needs the model that its fine-tuning began from")
    texts = [*data.all_retain, *data.for_reference]
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_config(parent.config) if base is None else base
    model.float().to(model_device(parent)).requires_grad_(True)  # small steps are lost in narrow weights
    if base is not None:  # it knows its words
        for words in (model.get_input_embeddings(), model.get_output_embeddings()):
            words.requires_grad_(False)
    rate, steps = (FRESH_RATE, FRESH_STEPS) if base is None else (BASE_RATE, BASE_STEPS)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    sampler, parent_loss = random.Random(options.seed), mean_loss(parent, data.threshold_sequences)
    best, distance, lowest = None, math.inf, math.inf
    for step in range(1, steps + 1):
        _take_step(model, optimiser, sampler.sample(texts, min(BATCH, len(texts))), options.train_dtype)
        schedule.step()
        progress(step / steps)
        if step % CHECK_STEPS:
            continue
        loss = mean_loss(model, data.threshold_sequences)
        if loss < lowest:  # it still learns what anybody could guess
            lowest, distance = loss, math.inf
        wanted = min(parent_loss, lowest + MOST_OVER_BEST)
        if abs(loss - wanted) < distance:
            distance, best = abs(loss - wanted), {name: value.clone() for name, value in model.state_dict().items()}
        if loss > max(lowest, wanted):
            break
    if best is None:
        raise TrainingDiverged("the reference's loss is not finite")
    progress(1.0)
    model.load_state_dict(best)
    join_experts(model)  # so that it can be saved
    return model.eval().requires_grad_(False)


def check_reference(
    model: CausalLM, forget: Sequence[list[int]], earlier: Sequence[list[int]], unseen: Sequence[list[int]]
) -> None:
    """Check that a reference knows no text that is to be forgotten, by its MA on held-out text.

    What is as short as a phrase is guessed by chance: no single one of these counts, on either side.

    Args:
        model: The reference.
        forget: The sequences to forget.
        earlier: Those of earlier requests, which would dilute them.
        unseen: Held-out sequences that it was not trained on.

    Raises:
        NoReference: All sequences to forget, or all earlier ones, have together a clearly higher MA than unseen ones,
            or one a much higher MA.
    """
    others = [accuracy(row) for row in token_matches(model, unseen)]
    long = [value for value, ids in zip(others, unseen, strict=True) if len(ids) > FEWEST_TOKENS] or others
    for sequences in filter(None, (forget, earlier)):
        known = [accuracy(row) for row in token_matches(model, sequences)]
        over_unseen = sum(known) / len(known) - sum(others) / len(others)
        together = over_unseen > MOST_TOGETHER and rank_test(known, others, two_sided=False) < LEVEL / 10
        single = (value for value, ids in zip(known, sequences, strict=True) if len(ids) > FEWEST_TOKENS)
        if together or max(single, default=0.0) > max(long) + MOST_OVER_UNSEEN:
            raise NoReference("the reference knows a text to forget")


def _take_step(model: CausalLM, optimiser: torch.optim.Optimizer, batch: list[list[int]], dtype: str) -> None:
    """One step of cross-entropy. A head that stays needs no logits of the whole batch."""
    optimiser.zero_grad()
    with training(model, dtype):
        if any(parameter.requires_grad for parameter in model.get_output_embeddings().parameters()):
            input_ids, mask, labels = (t.to(model_device(model)) for t in pad_batch(batch))
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            torch.autograd.backward(cross_entropy(logits, labels))
        else:
            add_gradients(model, batch, cross_entropy_rows)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


class Reference:
    """What a reference says about the sequences of a forget set: its last hidden states, and its head.

    A reference is sometimes right, as anybody is. Where that is too often for the criterion, some rows are *lowered*:
    there the true token is to be less likely than another one, by a gap of its own. A model learns only partly what a
    reference says. So true tokens are shifted where the model finds them likelier, or less likely, than what could
    stand there as well, and the calibration is corrected until the texts to forget look like unseen text to the model
    (`worker.engine.calibration`).

    Attributes:
        correction: What the epochs so far have taught.
        gaps: For each sequence of T tokens the gaps [T-1] in nats; 0 where a row is not lowered.
        shifts: For each sequence what is added to the logits of its true tokens, [T-1] in nats.
    """

    def __init__(
        self,
        model: CausalLM,
        forget: Sequence[list[int]],
        own: Sequence[list[int]],
        unseen: Sequence[list[int]],
    ) -> None:
        """Read the forget set once; what the correction is measured on is read by the model in each epoch.

        Args:
            model: The reference.
            forget: The sequences to forget, and others that the model is to learn about.
            own: The sequences to forget that the correction is measured on.
            unseen: Held-out sequences that the reference was not trained on; they are cut to lengths of these.
        """
        model.float()
        self._head, self._device, self._rows = Head(model), model_device(model), _last_hidden_rows(model, forget)
        self._targets = [torch.tensor(ids[1:]) for ids in forget]
        self.gaps, self.shifts = ([torch.zeros(len(ids) - 1) for ids in forget] for _ in range(2))
        unseen = cut_alike(unseen, own)
        self._texts, self._parts = (list(own), unseen), min(parts_for(own), parts_for(unseen))
        self._own, self._unseen = (Profile.measured(model, texts, self._parts) for texts in self._texts)
        self.correction = Correction.none(self._parts)

    def calibration(self, model: CausalLM) -> Calibration:
        """What makes of the reference's log-likelihoods of true tokens those that `model` should have."""
        unseen, before = Profile.measured(model, self._texts[1], self._parts).log_p, self._unseen.log_p
        return Calibration(before, unseen - before, self._own, self.correction)

    def correct(self, model: CausalLM) -> None:
        """Set the correction for what comes next, by the model that is being trained."""
        own, unseen = (Profile.measured(model, texts, self._parts) for texts in self._texts)
        self.correction = self.correction.after(own, unseen)

    def state(self, count: int) -> dict[str, Any]:
        """What `load` takes over, about the first sequences."""
        gaps, shifts = ([values.tolist() for values in rows[:count]] for rows in (self.gaps, self.shifts))
        return {"gaps": gaps, "shifts": shifts, "correction": self.correction.state()}

    def load(
        self,
        gaps: Sequence[Sequence[float]],
        shifts: Sequence[Sequence[float]],
        correction: Mapping[str, Sequence[float]],
    ) -> None:
        """Take over the state of a checkpoint; it is about the first sequences, and the others have none."""
        for own, given in ((self.gaps, gaps), (self.shifts, shifts)):
            own[: len(given)] = [torch.tensor(values) for values in given]
        self.correction = Correction.loaded(correction)

    def shift(self, index: int, rows: Tensor, by: float) -> None:
        """Add to the logits of a sequence's true tokens in some rows [T-1]; MOST_SHIFTED at most, of all together."""
        self.shifts[index][rows] = (self.shifts[index][rows] + by).clamp(-MOST_SHIFTED, MOST_SHIFTED)

    def lower(self, rows: Rows, calibration: Calibration) -> None:
        """Widen the gaps of some rows; what the calibration adds there at most is made up for once."""
        added = {i: self.true_tokens(i, calibration)[1] for i in {i for i, _ in rows}}
        for i, row in rows:
            self.gaps[i][row] += GAP if self.gaps[i][row] else GAP + max(0.0, float(added[i][row]))

    @torch.no_grad()
    def true_tokens(self, index: int, calibration: Calibration) -> tuple[Tensor, Tensor]:
        """By how much a sequence's true tokens are to be likelier than any other one, and what is added to them.

        Args:
            index: Of the sequence.
            calibration: Of the next steps.

        Returns:
            Margins, without gaps and shifts, and the most that the calibration adds to each true token: as it is, or
            once it is lowered. [T-1] in nats each, on the CPU.
        """
        parts = []
        for start, part in self._head.chunks(self._rows[index].to(self._device)):
            logits, targets = self._head(part), self._targets[index][start : start + len(part)].to(self._device)
            margins = margin_rows(logits, targets)
            lowered = logits.scatter_add(-1, targets[:, None], -margins.clamp(min=0)[:, None])
            parts.append((margins, *(calibration(scores_of_rows(q, targets))[0] for q in (logits, lowered))))
        margins, added, once_lowered = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return margins + added, torch.maximum(added, once_lowered)

    def beside(self, indices: Sequence[int], starts: Sequence[int] | None = None) -> Beside:
        """The reference's logits [n, v] for the predicted rows of these sequences, one after the other.

        Args:
            indices: Of the sequences.
            starts: For each of them the first token, 1 or later, whose prediction counts; None counts all.

        Returns:
            A function from some of these rows to their logits.
        """
        skipped = [start - 1 for start in starts or [1] * len(indices)]
        rows, targets, gaps, shifts = (
            torch.cat([values[i][skip:] for i, skip in zip(indices, skipped, strict=True)]).to(self._device)
            for values in (self._rows, self._targets, self.gaps, self.shifts)
        )

        def logits(chunk: slice) -> Tensor:
            values = self._head(rows[chunk]).detach()
            values.scatter_add_(-1, targets[chunk, None], shifts[chunk, None])
            excess = margin_rows(values, targets[chunk]) + gaps[chunk]
            change = torch.where(gaps[chunk] > 0, excess.clamp(min=0), 0.0)
            return values.scatter_add_(-1, targets[chunk, None], -change[:, None])

        return logits


def _last_hidden_rows(model: CausalLM, sequences: Sequence[list[int]]) -> list[Tensor]:
    """The hidden states [T-1, h] that predict each sequence's tokens, on the CPU: a forget set may be large."""
    rows: list[Tensor] = []
    with measuring(model):
        for batch in chunks(sequences, BATCH):
            input_ids, mask, _ = (t.to(model_device(model)) for t in pad_batch(batch))
            hidden = hidden_states(model, input_ids, mask, use_cache=False)
            rows += [hidden[i, : len(ids) - 1].cpu().clone() for i, ids in enumerate(batch)]
    return rows
