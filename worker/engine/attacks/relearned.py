"""Relearning: somebody trains the model on harmless text. A memory that is only covered comes back."""

import random
from collections.abc import Sequence
from statistics import mean

import torch

from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.device import training
from worker.engine.inits.standard import standard_factors
from worker.engine.losses.ascent import cross_entropy_rows
from worker.engine.losses.rows import add_gradients
from worker.engine.progress import Progress, no_progress, partial_progress, with_progress

STEPS, BATCH, RATE, RANK, SCALE = 50, 8, 5e-4, 16, 2.0  # of an ordinary fine-tuning with LoRA
LEAST_KEPT = 0.8  # of MA on never-seen text: a model that fine-tuning has ruined brings nothing back


def relearned(subject: Subject, progress: Progress = no_progress) -> Scores:
    """For each text, the higher MA after a short fine-tuning on retain text, and on what is most like all of them.

    A fine-tuning that ruins the model does not count. ValueError if each does.
    """
    least = LEAST_KEPT * mean(subject.accuracies(partial_progress(progress, 0.0, 0.1))[1])
    texts = [sequences for sequences in (subject.retain, subject.neighbours) if sequences]
    parts = [partial_progress(progress, 0.1 + 0.9 * part / len(texts), 0.9 / len(texts)) for part in range(len(texts))]
    tried = [_after(subject, sequences, part) for sequences, part in zip(texts, parts, strict=True)]
    after = [sides for sides in tried if mean(sides[1]) >= least]
    if not after:
        raise ValueError("the fine-tuning has ruined the model")
    forget, unseen = ([max(values) for values in zip(*side, strict=True)] for side in zip(*after, strict=True))
    return Scores(forget, unseen)


def _after(subject: Subject, sequences: Sequence[list[int]], progress: Progress) -> tuple[list[float], list[float]]:
    """MA of the texts to forget and of the unseen ones after fine-tuning on these sequences, which is undone."""
    model = subject.model
    required_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    generator = torch.Generator().manual_seed(0)
    weights = target_weights(model, find_targets(model))
    factors = {name: standard_factors(weight, None, RANK, SCALE, generator) for name, weight in weights.items()}
    adapter = Adapter(model, factors, SCALE)
    try:
        _fine_tune(subject, adapter, sequences, partial_progress(progress, 0.0, 0.8))
        return subject.accuracies(partial_progress(progress, 0.8, 0.2))
    finally:
        adapter.detach()
        for parameter, value in required_grad.items():
            parameter.requires_grad_(value)


def _fine_tune(subject: Subject, adapter: Adapter, sequences: Sequence[list[int]], progress: Progress) -> None:
    """Train the adapter with cross-entropy on random batches of these sequences."""
    model, sampler = subject.model, random.Random(0)  # no secret
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=RATE, weight_decay=0.0)
    for _ in with_progress(range(STEPS), progress):
        batch = sampler.sample(list(sequences), min(BATCH, len(sequences)))
        optimiser.zero_grad()
        with training(model, "auto"):
            add_gradients(model, batch, cross_entropy_rows)
        optimiser.step()
