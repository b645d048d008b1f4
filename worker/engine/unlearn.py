"""The whole run in memory: measure, initialise, train, merge, measure what was merged.

unlearn -> merge -> verify, as the service does it, without its files.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from worker.engine.adapter import Adapter, State, find_targets, target_weights
from worker.engine.errors import UnknownPlugin
from worker.engine.fisher import row_importance
from worker.engine.inits import INITS
from worker.engine.measure import Baseline, measure_after, measure_before
from worker.engine.merge import MERGED_MARK, merge_into
from worker.engine.options import Options, fitting
from worker.engine.prepare import Prepared, RetainSampler, prepare
from worker.engine.train import Checkpoint, Trainer

Progress = Callable[[str, float], None]


def silent(stage: str, fraction: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gives back.

    Attributes:
        model: The merged model; the parent itself if nothing had to be trained.
        history: One mapping an epoch: epoch, el, ma, loss, perplexity, seconds, ...
        report: passed, reason, thresholds, before, after, utility, per_record, earlier, not_memorised, ...
    """

    model: Any
    history: list[dict[str, Any]]
    report: dict[str, Any]


def train(
    model: Any,
    tokenizer: Any,
    data: Prepared,
    baseline: Baseline,
    options: Options,
    *,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Checkpoint], None] = lambda _: None,
    progress: Progress = silent,
) -> Checkpoint:
    """Initialise an adapter and train it; `model` comes back with its own weights and no adapter.

    Args:
        model: The parent model.
        tokenizer: Its tokenizer.
        data: The sets of the run; requests that the parent has not memorised are left out here.
        baseline: What was measured on the parent.
        options: The run's options.
        resume: A checkpoint of the same run to go on from.
        on_epoch: Told each epoch's checkpoint.
        progress: Told ("initialise" or "train", fraction 0..1).

    Returns:
        The last checkpoint.

    Raises:
        UnknownPlugin: The options name an unknown loss, initialisation or module.
        TrainingDiverged: The loss became NaN or infinite.
    """
    torch.manual_seed(options.seed)
    forget, thresholds = baseline.training_set(data)
    data = replace(data, forget=data.forget.only(baseline.memorised))
    training, trained = model.training, {p: p.requires_grad for p in model.parameters()}
    factors = initial_factors(model, data, options, resume, lambda f: progress("initialise", f))
    adapter = Adapter(model, factors, options.rank, options.scale)
    try:
        trainer = Trainer(
            model, adapter, forget, thresholds, baseline.memorised,
            RetainSampler(tokenizer, data.retain_texts, options.sequence_length, options.seed),
            data.utility, options, on_epoch, lambda f: progress("train", f),
        )  # fmt: skip
        return trainer.run(resume)
    finally:
        adapter.detach()
        model.train(training)
        for parameter, value in trained.items():
            parameter.requires_grad_(value)


def initial_factors(
    model: Any,
    data: Prepared,
    options: Options,
    resume: Checkpoint | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name -> (A [r, k], B [d, r]) by the initialisation that the options name.

    Args:
        model: The parent model.
        data: The sets of the run.
        options: The run's options.
        resume: A checkpoint whose start is taken instead.
        progress: Told the fraction done, 0..1.

    Returns:
        Where each module's factors start.

    Raises:
        UnknownPlugin: There is no such initialisation or target module.
    """
    names = find_targets(model, options.target_modules)
    if resume is not None:
        return {n: (resume.adapter[f"{n}|A0"], resume.adapter[f"{n}|B0"]) for n in names}
    if options.init not in INITS:
        raise UnknownPlugin(f"init: one of {', '.join(INITS)}")
    init, importance = INITS[options.init], {}
    if init.needs_importance:
        importance = row_importance(
            model,
            data.forget.sequences[: options.fisher_sequences],
            data.retain[: options.fisher_sequences],
            names,
            eps=options.fisher_eps,
            absolute_eps=options.fisher_absolute_eps,
            progress=progress,
        )
    generator = torch.Generator().manual_seed(options.seed)
    return {
        name: init.factors(weight, importance.get(name), options.rank, options.scale, generator)
        for name, weight in target_weights(model, names).items()
    }


def merged_copy(model: Any, state: State, options: Options) -> Any:
    """A copy of `model` with the adapter's change in its weights; `model` stays as it is."""
    merged = copy.deepcopy(model).eval()
    vars(merged).pop(MERGED_MARK, None)  # the copy of a merged model is a base of its own
    merge_into(merged, state, options.scale)
    return merged


def unlearn(
    model: Any,
    tokenizer: Any,
    forget_texts: Sequence[str],
    retain_texts: Sequence[str],
    heldout_texts: Sequence[str],
    options: Options | None = None,
    *,
    request_ids: Sequence[int] | None = None,
    earlier_texts: Sequence[str] = (),
    progress: Progress = silent,
) -> Result:
    """Unlearn `forget_texts` from a causal language model and test the result.

    Args:
        model: An `AutoModelForCausalLM`; its weights are not changed.
        tokenizer: Its tokenizer.
        forget_texts: Texts to unlearn, of any length.
        retain_texts: Texts to keep the model's abilities on.
        heldout_texts: Texts the model has never seen; they set the thresholds.
        options: The run's options; defaults if left out.
        request_ids: For each forget text the index of its request; None makes each text its own.
        earlier_texts: Texts that earlier runs unlearned from this model; each must still pass its verdict.
        progress: Told (stage, fraction 0..1).

    Returns:
        The merged model, the history and the report. `report["passed"]` is also true if every request
        already passed on the parent; then nothing was trained and `model` is the parent.

    Raises:
        TooFewTexts: Too little retain or held-out text.
        TooShort: A forget text has no token that the model predicts.
        UnknownPlugin: The options name an unknown loss, initialisation or module.
        TrainingDiverged: The loss became NaN or infinite.
    """
    options = fitting(options or Options(), model.config)
    request_ids = range(len(forget_texts)) if request_ids is None else request_ids
    first = max(request_ids, default=-1) + 1
    data = prepare(
        tokenizer, forget_texts, request_ids, retain_texts, heldout_texts, options,
        earlier_texts=earlier_texts, earlier_request_ids=range(first, first + len(earlier_texts)),
    )  # fmt: skip
    baseline = measure_before(model, data, options, lambda f: progress("measure", f))
    untouched = [v.request for v in baseline.before.verdicts if v.looks_unseen]
    common = {
        "not_memorised": untouched, "retain_excluded": data.retain_excluded,
        "heldout_excluded": data.heldout_excluded,
    }  # fmt: skip
    if not baseline.memorised:  # the parent stands; a set of unseen texts may straddle the held-out mean
        report = measure_after(model, data, baseline, options, lambda f: progress("verify", f))
        return Result(model, [], report.as_dict() | common | {"passed": True, "reason": None})
    again: Checkpoint | None = None
    while True:
        point = train(model, tokenizer, data, baseline, options, resume=again, progress=progress)
        merged = merged_copy(model, point.final, options)
        report = measure_after(merged, data, baseline, options, lambda f: progress("verify", f))
        again = point.reopen(report, options.max_epochs)
        if again is None:
            return Result(merged, point.history, report.as_dict() | common)
