"""The options of one unlearning run: plain values, no behaviour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from worker.engine.types import ModelConfig

TOTAL_BUDGET = 1.2  # the budget of all runs together, relative to the budget of one, where none is given

DEFAULT_ATTACKS = {
    "sampled": "report",
    "extraction_strength": "report",
    "membership_loss": "report",
    "membership_min_k": "report",
    "membership_min_k_pp": "report",
    "exposure": "report",
    "exposure_dates": "report",
    "exposure_addresses": "report",
    "exposure_emails": "report",
    "prompts": "report",
    "quantised": "report",
    "relearned": "off",  # it trains the model
}
RANK, SEQUENCES_A_RANK, MOST_RANKS = 16, 4, 4  # it is enough for four sequences, and grows to four times as many
SAMPLES, DISTIL_SAMPLES = 256, 2048
DISTIL_EPOCH_STEPS = 20
DISTIL = "distil"  # the loss that has a training loop of its own, `worker.engine.distil`


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one run; the defaults are the paper's (section 4.1) where the paper has one.

    Attributes:
        rank: LoRA rank r. With `adaptive`, the default grows with the forget set; any other value is taken as it is.
        alpha: LoRA alpha; None means 2 x rank. The LoRA scale is c = alpha / rank, whatever rank a run finds.
        learning_rate: AdamW's learning rate in the first epoch.
        adaptive: Find what a policy cannot know. The rate of later epochs follows what the epochs before have done
            (`worker.engine.pace`). The rank grows with the forget set. With IHL, retain text holds the divergence from
            the parent down, too, the parent's own samples are added to it, what greedy decoding still extracts
            once MA passes is pressed on, and what the criterion cost is repaired.
        max_epochs: Passes over the forget set after which the run gives up.
        min_epoch_steps: A forget set of three sequences is one step a pass; an epoch repeats the pass until
            it holds at least this many optimiser steps (the paper's 32 sequences at batch size 8 make 4).
        batch_size: Forget sequences a step at most.
        retain_batch_size: Retain sequences a step; None takes `batch_size`. The paper takes one for each forget
            sequence. For its 32 sequences that is the same, but a forget set of three would get only three.
        skip_passed: Leave a forget sequence out of training once its MA is at or under the held-out mean.
        epoch_checks: How many times in an epoch MA is measured, and training stops if it passes; 1 is the paper's. An
            epoch that `adaptive` makes longer has more.
        reserve: How far below its limit training must bring MA, so that the merged model passes, too.
        shrink: After training, apply the least share of the change that still passes with reserve.
        margin: IHL's margin; 1.0 is the paper's.
        loss: Name in `worker.engine.losses.LOSSES`, or "distil".
        init: Name in `worker.engine.inits.INITS`.
        target_modules: Module name suffixes to adapt; None finds the modules by rule.
        retain_weight: Weight of what a loss adds on retain text; where it adds two, of the cross-entropy.
        fisher_eps: Added to the retain Fisher, relative to its mean.
        fisher_absolute_eps: The published code's absolute eps instead (1e-5 there).
        fisher_sequences: The most sequences on each side of the Fisher estimate.
        seed: Seeds every generator of the run.
        max_request_sequences: Sequences of one request; a request of more is rejected.
        max_perplexity_ratio: The utility budget of this run: held-out perplexity after / before.
        max_total_perplexity_ratio: The utility budget of all runs since the first version together: held-out
            perplexity after / that of the first version. None takes 1.2 x `max_perplexity_ratio`.
        max_neighbour_loss: How much MA, and how much log-likelihood a token, the retain sequences most like the records
            may lose, and those most like the probes; and so those of each other set of neighbours.
        attacks: Attack -> "block", "report" or "off"; one that blocks keeps a version from being published.
        quantise: Schemes whose copies of the merged model are tested, too.
        distil_steps: Optimiser steps of `loss: distil`.
        distil_rank: LoRA rank of `loss: distil`; the divergence needs more of them than IHL.
        distil_learning_rate: Its highest learning rate; None takes 0.4 / hidden size.
        token_weight: Weight of the true token's log-likelihood beside the divergence from the reference.
        divergence_weight: Weight of the divergence from the parent on retain text and on its samples. Restored tokens
            of these have a sixth of it.
        own_samples: Samples of the parent that count as retain text, or that AltPO prefers. None takes 2048 for
            "distil" and 256 otherwise. With IHL some are only looked at.
        least_strength: The least share of the change that must suffice, too.
        relearn_steps: The most steps of fine-tuning that training looks ahead, so that they bring little back.
        probe_samples: Samples of each probe that is not answered greedily.
        el_n: n of EL_n; shorter sequences use the n that fits them.
        sequence_length: Window length L in tokens, BOS included.
        heldout_sequences: The most held-out sequences that set the thresholds.
        utility_sequences: The most held-out and the most retain sequences for perplexity.
        el_sample: Sequences whose EL is measured after each epoch; certified values are measured on all.
        earlier_sample: The most sequences of earlier requests that training watches; more, if one request has more than
            half of it. It watches as many as it forgets, and 16 at least. EL is measured of these and half as many
            others, MA and a lower bound of EL of all.
        row_budget: Rows (prefixes) decoded at once while measuring EL; bounds memory.
        device: "auto", "cpu", "cuda" or "cuda:1".
        dtype: The dtype of weights: "auto" (as stored on a CPU, bfloat16 where CUDA has it), "float32" or "bfloat16";
            measurements are computed in float32.
        train_dtype: The dtype of the products in training, and where samples are drawn: "auto" (bfloat16 where the
            processor has instructions for it), "float32" or "bfloat16".
        checkpoint_activations: Compute each layer again in the backward pass instead of holding its activations.
        devices: The most processes that share the weights of one job, each with a device of its own.
        sharding: "auto" takes as few of them as the memory allows, "always" takes all.
    """

    rank: int = RANK
    alpha: float | None = None
    learning_rate: float = 2e-4
    adaptive: bool = True
    max_epochs: int = 20
    min_epoch_steps: int = 8
    batch_size: int = 8
    retain_batch_size: int | None = None
    skip_passed: bool = True
    epoch_checks: int = 4
    reserve: float = 0.005
    shrink: bool = True
    margin: float = 1.0
    loss: str = "ihl"
    init: str = "fila"
    target_modules: tuple[str, ...] | None = None
    retain_weight: float = 1.0
    fisher_eps: float = 0.1
    fisher_absolute_eps: float | None = None
    fisher_sequences: int = 64
    seed: int = 0
    max_perplexity_ratio: float = 1.25
    max_request_sequences: int = 4096
    max_total_perplexity_ratio: float | None = None
    max_neighbour_loss: float = 0.03
    attacks: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_ATTACKS))
    quantise: tuple[str, ...] = ()
    distil_steps: int = 360
    distil_rank: int = 64
    distil_learning_rate: float | None = None
    token_weight: float = 0.3
    divergence_weight: float = 6.0
    own_samples: int | None = None
    least_strength: float = 0.3
    relearn_steps: int = 8
    probe_samples: int = 20
    el_n: int = 10
    sequence_length: int = 200
    heldout_sequences: int = 64
    utility_sequences: int = 32
    el_sample: int = 4
    earlier_sample: int = 64
    row_budget: int = 256
    device: str = "auto"
    dtype: str = "auto"
    train_dtype: str = "auto"
    checkpoint_activations: bool = False
    devices: int = 1
    sharding: str = "auto"

    @property
    def scale(self) -> float:
        """The LoRA scale c = alpha / r; 2.0 by default."""
        return 2.0 if self.alpha is None else self.alpha / (self.distil_rank if self.loss == DISTIL else self.rank)

    @property
    def most_tokens(self) -> int:
        """The tokens of a batch."""
        return self.batch_size * self.sequence_length

    def adapter_rank(self, sequences: int, hidden_size: int) -> int:
        """The rank of the adapter for a forget set of so many sequences."""
        if self.loss == DISTIL:
            return self.distil_rank
        if not self.adaptive or self.rank != RANK:
            return self.rank
        grown = RANK * min(MOST_RANKS, math.ceil(sequences / SEQUENCES_A_RANK))
        return max(RANK, min(grown, hidden_size // 4))

    @property
    def holds_parent(self) -> bool:
        """Whether IHL's retain text holds the divergence from the parent down."""
        return self.adaptive and self.loss == "ihl"

    @property
    def samples_drawn(self) -> int:
        """How many samples of the parent are drawn; 0 for a loss that takes none."""
        if self.loss != DISTIL and not self.holds_parent and self.loss != "altpo":
            return 0
        return self.own_samples or (DISTIL_SAMPLES if self.loss == DISTIL else SAMPLES)

    @property
    def distil_epochs(self) -> int:
        """The epochs of distillation; 0 for another loss."""
        return math.ceil(self.distil_steps / DISTIL_EPOCH_STEPS) if self.loss == DISTIL else 0

    @property
    def last_epoch(self) -> int:
        """The epoch after which the run gives up."""
        return self.distil_epochs + self.max_epochs

    @property
    def max_total_ratio(self) -> float:
        """The utility budget of all runs together; 1.5 by default."""
        total = self.max_total_perplexity_ratio
        return TOTAL_BUDGET * self.max_perplexity_ratio if total is None else total

    def for_training(self, total: float) -> "Options":
        """These options with the stricter of both utility budgets as the run's own.

        Args:
            total: The parent's held-out perplexity, relative to the first version's.

        Returns:
            The options for training; a report is made with the policy's own.
        """
        own = min(self.max_perplexity_ratio, self.max_total_ratio / total)
        return replace(self, max_perplexity_ratio=own, max_total_perplexity_ratio=self.max_total_ratio)

    def keeping(self, factor: float) -> "Options":
        """These options; what keeps the model as it was weighs so many times as much."""
        divergence, retain = self.divergence_weight * factor, self.retain_weight * factor
        return replace(self, divergence_weight=divergence, retain_weight=retain)

    @classmethod
    def paper(cls) -> "Options":
        """The paper's procedure: one rate, whole epochs, no sequence left out, nothing shrunk, the code's eps."""
        return cls(
            adaptive=False,
            skip_passed=False,
            min_epoch_steps=1,
            epoch_checks=1,
            reserve=0.0,
            shrink=False,
            fisher_absolute_eps=1e-5,
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> "Options":
        """Options from a policy: drops names that the engine does not know, and turns lists into tuples."""
        known = {f.name for f in fields(cls)}
        picked: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**picked)


def fit_to_model(options: Options, config: ModelConfig) -> Options:
    """The same options with windows no longer than the model's maximum length."""
    max_length = getattr(config, "max_position_embeddings", None) or options.sequence_length
    return replace(options, sequence_length=min(options.sequence_length, max_length))
