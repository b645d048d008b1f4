"""Whole runs in memory, on a tiny model that really has memorised its texts."""

import copy
import dataclasses
import hashlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests import support
from worker.engine import Options, unlearn
from worker.engine.checkpoint import Checkpoint
from worker.engine.criterion import Judgement, Verdict
from worker.engine.data import encode
from worker.engine.device import training
from worker.engine.errors import TooFewTexts, UnknownPlugin
from worker.engine.measure import ArtefactReport, measure_after, measure_before
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.options import fit_to_model
from worker.engine.prepare import prepare
from worker.engine.probes import ProbeCounts
from worker.engine.unlearn import train
from worker.engine.utility import Quality, compare

OPTIONS = Options.from_mapping(support.POLICY)


def mean_accuracy(model, tokenizer, texts) -> float:
    """Mean MA of texts."""
    rows = token_matches(model, [encode(tokenizer, text) for text in texts])
    return sum(map(accuracy, rows)) / len(rows)


def test_a_memorised_text_is_unlearned_and_the_rest_stays(memorised):
    """The criterion holds on the merged model, retained texts are known as before, the parent is untouched."""
    model, tokenizer = memorised
    before = copy.deepcopy(model.state_dict())
    stages = []
    result = unlearn(
        model,
        tokenizer,
        support.KNOWN[:2],
        support.RETAIN,
        support.HELDOUT,
        OPTIONS,
        progress=lambda stage, fraction: stages.append((stage, fraction)),
    )
    report = result.report
    assert report["passed"], report["reason"]
    assert report["after"]["ma"] <= report["after"]["ma_limit"] < report["before"]["ma"]
    assert report["after"]["el"] <= report["after"]["el_limit"] < report["before"]["el"]
    assert [v["passed"] for v in report["per_record"]] == [True, True]
    assert result.history[-1]["met"]
    assert {"epoch", "el", "ma", "loss", "seconds", "perplexity"} <= set(result.history[0])
    assert mean_accuracy(result.model, tokenizer, support.KNOWN[:2]) == pytest.approx(report["after"]["ma"])
    kept = mean_accuracy(model, tokenizer, support.RETAIN)
    assert mean_accuracy(result.model, tokenizer, support.RETAIN) >= kept - 0.03
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not result.model.training
    assert all(p.requires_grad for p in model.parameters())
    assert {stage for stage, _ in stages} == {"measure", "initialise", "train", "verify"}


@pytest.mark.slow
def test_a_merged_model_is_unlearned_again(memorised):
    """What one run has made is the parent of the next."""
    model, tokenizer = memorised
    for text in support.KNOWN[:2]:
        result = unlearn(model, tokenizer, [text], support.RETAIN, support.HELDOUT, OPTIONS)
        assert result.report["passed"], result.report["reason"]
        model = result.model


@pytest.mark.slow
def test_every_request_is_measured_on_the_result(memorised):
    """One that needed no training has a verdict on the merged model too."""
    model, tokenizer = memorised
    texts = [support.people(1, seed=77)[0], support.KNOWN[0]]
    report = unlearn(model, tokenizer, texts, support.RETAIN, support.HELDOUT, OPTIONS).report
    assert report["not_memorised"] == [0]
    assert [v["request"] for v in report["per_record"]] == [0, 1]
    assert [v["request"] for v in report["after"]["verdicts"]] == [1]


def test_an_unseen_text_is_not_trained_on(memorised):
    """Nothing was memorised: no epoch runs and the model is the parent."""
    model, tokenizer = memorised
    result = unlearn(model, tokenizer, [support.people(1, seed=77)[0]], support.RETAIN, support.HELDOUT, OPTIONS)
    assert result.report["passed"]
    assert result.report["not_memorised"] == [0]
    assert result.history == []
    assert result.model is model


@pytest.mark.slow
def test_a_long_text_is_unlearned_window_by_window(memorised):
    """Three known texts in one record become several windows of one request, and all of them pass."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, sequence_length=24)
    result = unlearn(model, tokenizer, ["\n".join(support.KNOWN[:3])], support.RETAIN, support.HELDOUT, options)
    assert [v["passed"] for v in result.report["per_record"]] == [True]
    assert result.report["passed"], result.report["reason"]


def test_a_run_that_misses_the_criterion_says_so(memorised):
    """One epoch at a tiny learning rate forgets nothing."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, learning_rate=1e-7, max_epochs=1)
    report = unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options).report
    assert (report["passed"], report["reason"]) == (False, "criterion_missed")
    assert report["attacks"]  # the last test runs everything


def test_a_run_over_its_utility_budget_says_so(memorised):
    """A budget that no run can keep is not kept."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, max_perplexity_ratio=0.01, adaptive=False)
    report = unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options).report
    assert (report["passed"], report["reason"]) == (False, "utility_budget_exceeded")


@pytest.mark.slow
def test_what_a_named_set_of_neighbours_loses_keeps_a_run_unpublished(memorised):
    """People whom the retain file does not name lose; training looks at them, and trains on none of them."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, max_neighbour_loss=0.01, max_perplexity_ratio=100.0, learning_rate=2e-2)
    sets = [support.KNOWN[:1], support.KNOWN[3:6]]  # of the first nothing is left: it is the text to forget
    texts = (support.KNOWN[:1], support.RETAIN, support.HELDOUT)
    result = unlearn(model, tokenizer, *texts, options, neighbour_texts=sets)
    utility = result.report["utility"]
    assert (result.report["reason"], utility["neighbour_set"]) == ("neighbours_lost", 2)
    assert utility["neighbour_loss_after"] - utility["neighbour_loss_before"] > 0.01
    assert all("neighbours_lost" in entry for entry in result.history)


@pytest.mark.parametrize("loss", ["gd", pytest.param("ga", marks=pytest.mark.slow)])
def test_baselines_run_behind_the_same_options(memorised, loss):
    """GA and GD train and report like the method does."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, loss=loss, init="lora", max_epochs=3, learning_rate=5e-3)
    result = unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options)
    assert result.history[-1]["ma"] < result.report["before"]["ma"]
    assert (result.history[0]["retain_loss"] == 0) is (loss == "ga")


def test_resumed_training_gives_the_same_bytes(memorised):
    """Stopped after any epoch and resumed, the adapter is bit for bit that of an uninterrupted run (CPU)."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, max_epochs=3, learning_rate=5e-4, batch_size=2)
    data = prepare(tokenizer, support.KNOWN[:6], range(6), support.RETAIN, support.HELDOUT, options)
    baseline = measure_before(model, tokenizer, data, options)
    points: list[Checkpoint] = []
    whole = train(model, tokenizer, data, baseline, options, on_epoch=lambda p: points.append(copy.deepcopy(p)))
    assert [p.epoch for p in points] == list(range(1, len(points) + 1))
    assert len(points) > 2
    for point in points[:-1]:
        resumed = train(model, tokenizer, data, baseline, options, resume=copy.deepcopy(point))
        assert [e["steps"] for e in resumed.history] == [e["steps"] for e in whole.history]
        assert set(whole.adapter) == set(resumed.adapter)
        assert all(torch.equal(whole.adapter[name], resumed.adapter[name]) for name in whole.adapter)


def verdict(request: int, el: float, *, passed: bool) -> Verdict:
    """A verdict as a report has it."""
    return Verdict(request, el, 0.0, 0.01, 0.5, passed, over_forgotten=False, looks_unseen=passed)


@pytest.mark.parametrize(
    ("point", "per_record", "earlier", "expected"),
    [
        (Checkpoint(2, met=True, strength=0.5), [(0, 0.2, False), (1, 0.0, True)], [], (1.0, True, (0,))),
        (Checkpoint(2, met=True), [(0, 0.2, False), (1, 0.0, True)], [], (1.0, False, (0,))),
        (Checkpoint(2, met=True), [(0, 0.02, True), (1, 0.0, True)], [], (1.0, False, (0,))),
        (Checkpoint(2, met=True), [(0, 0.0, True), (1, 0.0, True)], [(7, 0.3, False)], (1.0, False, (7,))),
        (Checkpoint(4, met=True, strength=0.5), [(0, 0.2, False), (1, 0.0, True)], [], (1.0, True, (0,))),
        (Checkpoint(4, met=True), [(0, 0.2, False), (1, 0.0, True)], [], None),
        (Checkpoint(2, met=False), [(0, 0.2, False), (1, 0.0, True)], [], None),
        (Checkpoint(2, met=True), [(0, 0.0, True), (1, 0.0, True), (2, 0.3, False)], [], None),
    ],
)
def test_what_fails_the_whole_test_is_trained_on(point, per_record, earlier, expected):
    """First the whole change, then more training on what failed; nothing if training cannot help (2 was not in it)."""
    verdicts = [verdict(r, el, passed=p) for r, el, p in per_record]
    after = Judgement(el=0.0, ma=0.0, el_limit=0.01, ma_limit=0.5, verdicts=tuple(verdicts[:2]))
    same = Quality(1.0, 1.0, [(1.0, 1.0)])
    utility = compare(same, same, 1.0, OPTIONS)
    reason = "earlier_request_regressed" if earlier else "criterion_missed"
    came_back = [verdict(r, el, passed=p) for r, el, p in earlier]
    report = ArtefactReport(reason, [], after, after, verdicts, came_back, 0, utility, [], ProbeCounts(0, 0, 0, 0))
    reopened = point.reopen(report, 4)
    assert (reopened and (reopened.strength, reopened.met, reopened.reopened)) == expected
    again = replace(point, back=(5,)).reopen(report, 4)
    assert not again or again.back == (5, *(request for request, _, passed in earlier if not passed))
    assert point.reopen(replace(report, reason=None), 4) is None
    assert point.reopen(replace(report, reason="utility_budget_exceeded"), 4) is None


@pytest.mark.slow
def test_a_run_goes_on_where_the_whole_fails(memorised, monkeypatch):
    """The test of the whole fails twice: the whole change is tried, then another epoch; the third test counts."""
    model, tokenizer = memorised
    merged, may_end = list[torch.Tensor](), list[bool]()

    def failing_twice(tested, *rest, **others):
        may_end.append(others["ends_at_miss"])
        report = measure_after(tested, *rest, **others)
        merged.append(torch.cat([p.detach().flatten() for p in tested.parameters()]))
        if len(merged) <= 2:
            first, *others = report.per_record
            failing = replace(first, passed=False)
            after = replace(report.after, verdicts=(failing, *report.after.verdicts[1:]))
            report = replace(report, reason="criterion_missed", per_record=[failing, *others], after=after)
        return report

    monkeypatch.setattr(sys.modules["worker.engine.unlearn"], "measure_after", failing_twice)
    result = unlearn(model, tokenizer, support.KNOWN[:2], support.RETAIN, support.HELDOUT, OPTIONS)
    assert result.report["passed"], result.report["reason"]
    first = next(i for i, e in enumerate(result.history) if e["met"])
    shrunk = result.history[first]["strength"] < 1
    assert len(merged) == 3
    assert may_end[:2] == [True, True]
    assert len(result.history) == first + (2 if shrunk else 3)
    assert not torch.equal(merged[0], merged[1])
    assert not torch.equal(merged[1], merged[2])


@pytest.mark.slow
def test_retain_text_with_the_forget_text_is_left_out_and_told(memorised):
    """A retain set that holds the text to forget does not fight the run."""
    model, tokenizer = memorised
    retain = [*support.RETAIN, "x " + support.KNOWN[0].upper()]
    report = unlearn(model, tokenizer, support.KNOWN[:1], retain, support.HELDOUT, OPTIONS).report
    assert report["retain_excluded"] == 1
    assert report["passed"]


def test_retain_text_that_is_nothing_else_is_an_error(memorised):
    """Nothing is left to keep the model's abilities on."""
    model, tokenizer = memorised
    with pytest.raises(TooFewTexts, match="retain"):
        unlearn(model, tokenizer, support.KNOWN[:1], support.KNOWN[:1], support.HELDOUT, OPTIONS)


@pytest.mark.parametrize("wrong", [{"loss": "nope"}, {"init": "nope"}, {"target_modules": ("nope",)}])
def test_unknown_plugins_are_named(memorised, wrong):
    """A policy with an unknown name gets an error that says which."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, **wrong)
    with pytest.raises(UnknownPlugin, match=next(iter(wrong))):
        unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options)


def test_defaults_are_those_of_interfaces():
    """And windows are no longer than the model's positions reach."""
    assert fit_to_model(Options(), SimpleNamespace(max_position_embeddings=128)).sequence_length == 128
    assert (Options().rank, Options().scale, Options().margin, Options().learning_rate) == (16, 2.0, 1.0, 2e-4)
    assert (Options().max_epochs, Options().batch_size, Options().el_n, Options().sequence_length) == (20, 8, 10, 200)


@pytest.mark.slow
def test_training_stops_in_mid_epoch_and_keeps_the_least_change(memorised, monkeypatch):
    """No step after MA passes, and no more of the change than passes with the reserve, where no probe needs more."""
    monkeypatch.setattr("worker.engine.identifiers.PATTERNS", {})
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, adaptive=False, min_epoch_steps=40, epoch_checks=40)
    result = unlearn(model, tokenizer, support.KNOWN[:2], support.RETAIN, support.HELDOUT, options)
    whole = dataclasses.replace(options, shrink=False)
    unshrunk = unlearn(model, tokenizer, support.KNOWN[:2], support.RETAIN, support.HELDOUT, whole)
    (entry,), after = result.history, result.report["after"]
    assert result.report["passed"], result.report["reason"]
    assert entry["steps"] < 40
    assert 0 < entry["strength"] < 1
    assert unshrunk.history[0]["strength"] == 1.0
    assert unshrunk.history[0]["steps"] == entry["steps"]
    assert unshrunk.report["after"]["ma"] <= after["ma"] <= after["ma_limit"]


@pytest.mark.slow
def test_the_papers_procedure(memorised):
    """Whole epochs over every sequence, no share, no reserve."""
    model, tokenizer = memorised
    options = dataclasses.replace(
        Options.paper(),
        **{
            k: getattr(OPTIONS, k)
            for k in (
                "learning_rate",
                "max_epochs",
                "max_perplexity_ratio",
                "max_neighbour_loss",
                "sequence_length",
                "rank",
                "heldout_sequences",
            )
        },
    )
    result = unlearn(model, tokenizer, support.KNOWN[:4], support.RETAIN, support.HELDOUT, options)
    assert result.report["passed"], result.report["reason"]
    assert {entry["steps"] for entry in result.history} == {1}
    assert {entry["strength"] for entry in result.history} == {1.0}
    assert options.margin == 1.0


@pytest.mark.slow
def test_an_earlier_forget_set_stays_forgotten(memorised):
    """It is measured on the new model with a verdict of its own, and what came back is trained on again."""
    model, tokenizer = memorised
    first = unlearn(model, tokenizer, support.KNOWN[:2], support.RETAIN, support.HELDOUT, OPTIONS)
    assert first.report["earlier"] == []
    second = unlearn(
        first.model,
        tokenizer,
        support.KNOWN[2:3],
        support.RETAIN,
        support.HELDOUT,
        OPTIONS,
        earlier_texts=support.KNOWN[:2],
    )
    assert second.report["passed"], second.report["reason"]
    assert [(v["request"], v["passed"]) for v in second.report["earlier"]] == [(1, True), (2, True)]
    assert [v["request"] for v in second.report["per_record"]] == [0]
    back = unlearn(
        model, tokenizer, support.KNOWN[2:3], support.RETAIN, support.HELDOUT, OPTIONS, earlier_texts=support.KNOWN[:2]
    )
    assert back.report["passed"], back.report["reason"]
    assert all(v["passed"] for v in back.report["earlier"])
    assert mean_accuracy(back.model, tokenizer, support.KNOWN[:2]) < mean_accuracy(model, tokenizer, support.KNOWN[:2])


@pytest.mark.slow
def test_a_regression_blocks_publication_and_is_named(memorised):
    """An earlier request that is known by heart again fails the run, whatever the new one says."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, max_perplexity_ratio=1e9)
    forgotten = unlearn(model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT, options).model
    data = prepare(
        tokenizer,
        support.KNOWN[:1],
        [0],
        support.RETAIN,
        support.HELDOUT,
        options,
        earlier_texts=support.KNOWN[1:3],
        earlier_request_ids=[1, 2],
    )
    report = measure_after(forgotten, tokenizer, data, measure_before(model, tokenizer, data, options), options)
    assert (report.passed, report.reason) == (False, "earlier_request_regressed")
    assert [v.request for v in report.earlier if not v.passed] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("train_dtype", ["float32", "bfloat16"])
def test_the_same_job_twice_gives_the_same_bytes(memorised, train_dtype, tmp_path):
    """Seeds, fixed generators and fixed orders: identical safetensors digests on a CPU."""
    model, tokenizer = memorised
    options, digests = dataclasses.replace(OPTIONS, train_dtype=train_dtype), set()
    for run in ("a", "b"):
        result = unlearn(model, tokenizer, support.KNOWN[:2], support.RETAIN, support.HELDOUT, options)
        assert result.report["passed"], result.report["reason"]
        result.model.save_pretrained(tmp_path / run)
        digests.add(hashlib.sha256((tmp_path / run / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_checkpointed_activations_change_no_gradient(family):
    """Layers computed twice in the backward pass, no dropout, the same numbers; nothing stays patched."""
    model = support.random_model(family, gain=1.0)
    input_ids = torch.randint(2, support.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    grads = []
    for again in (False, True):
        model.zero_grad()
        with training(model, "float32", checkpoint_activations=again):
            model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-7, rtol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())
