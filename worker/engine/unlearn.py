"""The whole run in memory: measure, initialise, train, merge, measure the merged model.

It goes unlearn -> merge -> verify, as the service does, without the service's files.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.baseline import Baseline
from worker.engine.checkpoint import Checkpoint
from worker.engine.distil import Distiller
from worker.engine.errors import UnknownPlugin
from worker.engine.experts import experts_apart, join_experts
from worker.engine.fisher import row_importance
from worker.engine.inits import INITS
from worker.engine.measure import measure_after, measure_before, with_samples
from worker.engine.merge import MERGED_MARK, merge_into
from worker.engine.options import DISTIL, Options, fit_to_model
from worker.engine.other_prompts import other_prompts
from worker.engine.prepare import Prepared, prepare
from worker.engine.probes import Probe
from worker.engine.progress import Progress, StageProgress, no_progress, no_stage_progress, partial_progress
from worker.engine.reference import Reference, check_reference, train_reference
from worker.engine.samples import RetainSampler, watched_samples
from worker.engine.sharding import whole
from worker.engine.train import Trainer
from worker.engine.types import AdapterState, CausalLM, EpochEntry, Tokenizer
from worker.engine.utility import Watched
from worker.engine.variants import number_variants
from worker.engine.verdicts import answered_requests


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run.

    Attributes:
        model: The merged model; the parent itself if nothing had to be trained.
        history: One mapping for each epoch: epoch, el, ma, loss, perplexity, seconds, ...
        report: passed, reason, thresholds, before, after, utility, per_record, earlier, not_memorised, ...
    """

    model: CausalLM
    history: list[EpochEntry]
    report: dict[str, object]


def train(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    baseline: Baseline,
    options: Options,
    *,
    reference: CausalLM | None = None,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Checkpoint], None] = lambda _: None,
    progress: StageProgress = no_stage_progress,
) -> Checkpoint:
    """Initialise an adapter and train it; afterwards `model` has its own weights and no adapter.

    Args:
        model: The parent model.
        tokenizer: Its tokenizer.
        data: The sets of the run; requests that the parent has not memorised are left out here.
        baseline: The measurements of the parent.
        options: The run's options.
        reference: A model that never saw the forget set; `loss: distil` needs it.
        resume: A checkpoint of the same run to continue from.
        on_epoch: Called with each epoch's checkpoint.
        progress: Called with ("initialise" or "train", fraction 0..1).

    Returns:
        The last checkpoint, with the factors to merge: those that met the criterion with the least harm, if any did.

    Raises:
        UnknownPlugin: The options name an unknown loss, initialisation or module.
        TrainingDiverged: The loss became NaN or infinite.
    """
    if resume is not None and resume.is_last(options.last_epoch):
        return resume.ended(options.last_epoch)
    torch.manual_seed(options.seed)
    forget, thresholds = baseline.training_set(data, resume.back if resume else ())
    drawn = with_samples(model, tokenizer, data, baseline, options, progress)
    data = replace(data, forget=data.forget.only(baseline.counted))
    resume = resume.fitted(forget) if resume else None
    was_training, required_grad = model.training, {p: p.requires_grad for p in model.parameters()}
    retain = RetainSampler(tokenizer, data.retain_texts, options.sequence_length, options.seed)
    parts = [partial_progress(partial(progress, "initialise"), start, 0.25) for start in (0.5, 0.75)]
    assert drawn.said is not None
    assert drawn.samples is not None
    said, (samples, only_watched) = drawn.said, watched_samples(drawn.samples, options)
    watched = Watched.of_run(model, data, baseline.quality.heldout_perplexity, options, only_watched)
    factors = initial_factors(model, data, options, resume, parts[0])
    adapter = Adapter(model, factors, options.scale)
    if resume is not None and resume.tested:  # the test may have found answers that the parent does not give
        adapter.load(resume.tested)
        said = [*said, *answered_requests(model, tokenizer, data, options, parts[1])[1]]
    run: dict[str, Any] = {"on_epoch": on_epoch, "progress": lambda fraction: progress("train", fraction)}
    paced = options.for_training(baseline.quality.heldout_perplexity / baseline.first_perplexity)
    try:
        if options.loss == DISTIL:
            assert reference is not None
            unseen = baseline.without_known(data).threshold_sequences
            own, seeds = data.forget.sequences, (options.seed, options.seed + 1)
            check_reference(reference, own, forget.sequences[len(own) :], unseen)
            variants, compared = (number_variants(tokenizer, forget.sequences, unseen, seed) for seed in seeds)
            prompted = other_prompts(tokenizer, own, data.retain, options.sequence_length, options.seed)
            read = [*forget.sequences, *variants.sequences, *(answer.input_ids for answer in [*said, *prompted])]
            says = Reference(reference, read, own, unseen)
            sets = (forget, thresholds, baseline.counted, says, variants, compared, said, prompted)
            return Distiller(model, adapter, *sets, retain, samples, watched, paced, **run).run(resume)
        trained_on = (forget, thresholds, baseline.counted, retain, watched)
        return Trainer(model, adapter, *trained_on, paced, said=said, samples=samples.every, **run).run(resume)
    finally:
        adapter.detach()
        model.train(was_training)
        for parameter, value in required_grad.items():
            parameter.requires_grad_(value)


def initial_factors(
    model: CausalLM,
    data: Prepared,
    options: Options,
    resume: Checkpoint | None = None,
    progress: Progress = no_progress,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> (A [r, k], B [d, r]) by the initialisation that the options name.

    Args:
        model: The parent model.
        data: The sets of the run.
        options: The run's options.
        resume: A checkpoint; its start is used instead.
        progress: Called with the fraction done, 0..1.

    Returns:
        The factors that each module starts from.

    Raises:
        UnknownPlugin: There is no such initialisation or target module.
    """
    names = find_targets(model, options.target_modules)
    if resume is not None:
        return {name: (resume.adapter[f"{name}|A0"], resume.adapter[f"{name}|B0"]) for name in names}
    if options.init not in INITS:
        raise UnknownPlugin(f"init: one of {', '.join(INITS)}")
    init = INITS["lora" if options.loss == DISTIL else options.init]
    importance: dict[str, Tensor] = {}
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
    rank = options.adapter_rank(len(data.forget.sequences), model.config.hidden_size)
    return {
        name: init.factors(whole(weight), importance.get(name), rank, options.scale, generator)
        for name, weight in target_weights(model, names).items()
    }


def merged_copy(model: CausalLM, state: AdapterState, options: Options) -> CausalLM:
    """A copy of `model` with the adapter's change in its weights; `model` itself does not change."""
    merged = copy.deepcopy(model).eval()
    vars(merged).pop(MERGED_MARK, None)  # the copy of a merged model is a base of its own
    merge_into(merged, state, options.scale)
    return merged


def unlearn(
    model: CausalLM,
    tokenizer: Tokenizer,
    forget_texts: Sequence[str],
    retain_texts: Sequence[str],
    heldout_texts: Sequence[str],
    options: Options | None = None,
    *,
    request_ids: Sequence[int] | None = None,
    earlier_texts: Sequence[str] = (),
    probes: Sequence[Probe] = (),
    neighbour_texts: Sequence[Sequence[str]] = (),
    first_perplexity: float | None = None,
    base_model: CausalLM | None = None,
    progress: StageProgress = no_stage_progress,
) -> Result:
    """Unlearn `forget_texts` from a causal language model and test the result.

    Args:
        model: An `AutoModelForCausalLM`; its weights are not changed.
        tokenizer: Its tokenizer.
        forget_texts: Texts to unlearn, of any length.
        retain_texts: Texts to keep the model's abilities on.
        heldout_texts: Texts the model has never seen; they set the thresholds.
        options: The run's options; None takes the defaults.
        request_ids: For each forget text the index of its request; None makes each text its own request.
        earlier_texts: Texts that earlier runs unlearned from this model; each must still pass its verdict.
        probes: Prompts that must not bring out a secret, beside those that the run makes of the texts.
        neighbour_texts: Sets of texts that the model must not lose, beside retain text. Nothing is trained on them.
        first_perplexity: Held-out perplexity before the first of these runs, as its report has it; None if this is
            the first run.
        base_model: The model that the fine-tuning of `model` began from. `loss: distil` makes its reference of a copy;
            without it, a small model's reference begins from nothing.
        progress: Called with (stage, fraction 0..1).

    Returns:
        The merged model, the history and the report. `report["passed"]` is also true if every request
        already passed on the parent; then nothing was trained and `model` is the parent.

    Raises:
        TooFewTexts: Too little retain or held-out text.
        HeldoutTooFew: Too little held-out text for the attacks that block.
        TooShort: A forget text has no token that the model predicts.
        UnknownPlugin: The options name an unknown loss, initialisation or module.
        NoReference: `loss: distil` has no base and the model is too large to be learned from nothing, or the reference
            knows a text to forget.
        TrainingDiverged: The loss became NaN or infinite.
    """
    options = fit_to_model(options or Options(), model.config)
    request_ids = range(len(forget_texts)) if request_ids is None else request_ids
    first_earlier = max(request_ids, default=-1) + 1
    data = prepare(
        tokenizer,
        forget_texts,
        request_ids,
        retain_texts,
        heldout_texts,
        options,
        earlier_texts=earlier_texts,
        earlier_request_ids=range(first_earlier, first_earlier + len(earlier_texts)),
        probes=probes,
        neighbour_texts=neighbour_texts,
    )
    measuring = partial(progress, "measure")
    with experts_apart(model):
        baseline = measure_before(model, tokenizer, data, options, measuring, first_perplexity=first_perplexity)
        if not baseline.memorised:
            return _parent_stands(model, tokenizer, data, baseline, options, progress)
        reference: CausalLM | None = None
        if options.loss == DISTIL:
            base = copy.deepcopy(base_model)
            unseen = baseline.without_known(data)
            reference = train_reference(model, base, unseen, options, lambda fraction: progress("reference", fraction))
        baseline = with_samples(model, tokenizer, data, baseline, options, progress)
        resume, verifying = None, partial(progress, "verify")
        while True:
            checkpoint = train(
                model, tokenizer, data, baseline, options, reference=reference, resume=resume, progress=progress
            )
            merged = merged_copy(model, checkpoint.final, options)
            goes_on, sets = checkpoint.may_go_on(options.last_epoch), (tokenizer, data, baseline, options)
            report = measure_after(merged, *sets, verifying, back=checkpoint.back, ends_at_miss=goes_on)
            resume = checkpoint.reopen(report, options.last_epoch)
            if resume is None:
                join_experts(merged)
                return Result(merged, checkpoint.history, report.as_dict() | _left_out(data, baseline))


def _parent_stands(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    baseline: Baseline,
    options: Options,
    progress: StageProgress,
) -> Result:
    """The result if no request was memorised; it passes although the mean of unseen texts may be over the limit."""
    report = measure_after(model, tokenizer, data, baseline, options, lambda fraction: progress("verify", fraction))
    return Result(model, [], report.as_dict() | _left_out(data, baseline) | {"passed": True, "reason": None})


def _left_out(data: Prepared, baseline: Baseline) -> dict[str, object]:
    """What the run left out: requests that look unseen, and reference texts that contain a forget text."""
    return {
        "not_memorised": [v.request for v in baseline.before.verdicts if v.request not in baseline.memorised],
        "retain_excluded": data.retain_excluded,
        "heldout_excluded": data.heldout_excluded,
    }
