"""Distillation from a reference, on a small model that knows some people by heart."""

import copy
import dataclasses
import random
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests import support
from worker.engine import Options, unlearn
from worker.engine import distil as distil_module
from worker.engine import reference as reference_module
from worker.engine.attacks import Subject, run_attacks
from worker.engine.calibration import Calibration, Correction, Profile
from worker.engine.checkpoint import Checkpoint
from worker.engine.criterion import Threshold
from worker.engine.data import encode, nearest
from worker.engine.distil import LARGEST_BATCH, NEARBY_WEIGHT, REFERENCE_RESERVE, Distiller
from worker.engine.errors import NoReference
from worker.engine.forget_set import ForgetSet
from worker.engine.measure import measure_before
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.perplexity import mean_loss
from worker.engine.prepare import prepare
from worker.engine.pressing import Pressed
from worker.engine.probes import Answer
from worker.engine.reference import GAP, Reference, check_reference, train_reference
from worker.engine.samples import OwnSamples, own_samples
from worker.engine.unlearn import train
from worker.engine.utility import NOTHING_LEFT, Quality, compare
from worker.engine.variants import Variants, number_variants

OPTIONS = dataclasses.replace(
    Options.from_mapping(support.POLICY),
    loss="distil",
    distil_steps=60,
    distil_rank=32,
    own_samples=32,
    relearn_steps=0,
    attacks={},
)
TWO = torch.arange(2.0)
NO_SAMPLES = OwnSamples([], [])
NOTHING_ADDED = Calibration(TWO, torch.zeros(2), Profile(TWO, TWO, TWO), Correction.none(2))


@pytest.fixture(scope="module")
def run(memorised):
    """(parent, tokenizer, result) of a run over six people."""
    model, tokenizer = memorised
    return model, tokenizer, unlearn(model, tokenizer, support.KNOWN[:6], support.RETAIN, support.HELDOUT, OPTIONS)


@pytest.mark.slow
def test_what_was_known_is_neither_likely_nor_a_candidate(run):
    """The criterion holds; sampling finds no more than in unseen text, and the loss attack finds much less."""
    model, tokenizer, result = run
    assert result.report["reason"] is None, result.report
    forget, unseen = (
        [encode(tokenizer, t) for t in texts] for texts in (support.KNOWN[:6], support.people(40, seed=31))
    )
    policy = {"sampled": "report", "membership_loss": "report"}
    before, after = (
        {r.name: r for r in run_attacks(Subject(m, tokenizer, forget, unseen, []), policy)}
        for m in (model, result.model)
    )
    assert before["sampled"].passed is before["membership_loss"].passed is False
    assert after["sampled"].passed
    gap = {
        when: r["membership_loss"].figure - r["membership_loss"].control for when, r in (("b", before), ("a", after))
    }
    assert abs(gap["a"]) < 0.35 * gap["b"]


def test_what_is_over_a_limit_is_lowered_and_pressed_on_numbers_last(memorised, monkeypatch):
    """A known text: all its words go before its numbers. Where nothing is over a limit nothing is lowered."""
    model, tokenizer = memorised
    ids = encode(tokenizer, support.KNOWN[0])
    matches, numbers = token_matches(model, [ids])[0], number_variants(tokenizer, [ids], [], 0).numbers
    of_numbers = [row for row, number in enumerate(numbers[0]) if number and matches[row]]
    words = [row for row, number in enumerate(numbers[0]) if matches[row] and not number]
    assert of_numbers
    assert words

    def pressed(
        ma: float, failed: list[int], added: float = 0.25
    ) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        limits = Threshold(len(ids), len(ids) - 1, 40, 1.0, ma, 1.0, 2.0, 0.0, 1.0, 2.0)  # no chain is so long
        zeros = torch.zeros(len(ids) - 1)
        reference = SimpleNamespace(gaps=[zeros.clone()], true_tokens=lambda i, calibration: (zeros, zeros + added))
        reference.lower = partial(Reference.lower, reference)
        distiller = Distiller(
            *(model, None, ForgetSet([ids], [0]), [limits], [0], reference),
            *(Variants([], [], [], []), Variants([], [], [], numbers), [], [], None, NO_SAMPLES, None),
            dataclasses.replace(OPTIONS, reserve=0.05),
        )
        rows, gap = distiller._pressed(NOTHING_ADDED, failed).rows, GAP + max(0.0, added)
        assert set(reference.gaps[0].tolist()) <= {0.0, gap}
        lowered = reference.gaps[0].nonzero().flatten().tolist()
        distiller._pressed(NOTHING_ADDED, failed)
        assert set(reference.gaps[0].tolist()) <= {0.0, gap + GAP}  # what is added counts once
        return rows, lowered

    left = (len(of_numbers) - 1) / (len(ids) - 1) + REFERENCE_RESERVE + 0.05  # one number less than there are
    ((sequence, rows),), lowered = pressed(left, [])
    assert (sequence, lowered) == (ids, rows)
    assert {*words} < {*rows} < {*words, *of_numbers}
    assert len(rows) == len(words) + 1
    assert pressed(left, [], -0.25) == ([(sequence, rows)], lowered)
    assert pressed(2.0, []) == ([], [])
    assert pressed(2.0, [0]) == ([(ids, [*range(len(ids) - 1)])], [])  # a request that failed: all of it
    last = []
    monkeypatch.setattr(distil_module, "extracted", lambda *sets: last.append(sets[-1]) or ([], set()))
    pressed(left, [0])
    assert last == [{ids[row + 1] for row, number in enumerate(numbers[0]) if number}] * 2


@pytest.mark.parametrize(("step", "learned"), [(59, True), (60, False)])
def test_after_the_fixed_steps_no_answer_is_learned_from_the_reference(memorised, monkeypatch, step, learned):
    """It may guess one, and would bring it back in every epoch that does not press on it. Tokens count alike before.

    Nor is what stands after other prompts. Variants are learned throughout. Each has its own rows of the reference.
    What is kept has the epoch's weight.
    """
    model, tokenizer = memorised
    text = encode(tokenizer, support.KNOWN[3])
    said = [Answer(encode(tokenizer, text)[:12], 8) for text in support.KNOWN[:3]]
    varied, prompted = encode(tokenizer, support.KNOWN[4]), Answer(encode(tokenizer, support.KNOWN[5]), 6)
    adapter = SimpleNamespace(set_strength=lambda strength: None, parameters=list)
    reference = SimpleNamespace(beside=lambda indices, starts=None: (sorted(indices), starts))
    retain, rows = SimpleNamespace(sample=lambda count: []), []
    distiller = Distiller(
        *(model, adapter, ForgetSet([text], [0]), [], [0], reference, Variants([varied], [0], [True], [])),
        *(Variants([], [], [], []), said, [prompted], retain, NO_SAMPLES, None, OPTIONS),
    )
    losses, weights = [], []
    monkeypatch.setattr(distil_module, "kept_gradients", lambda *sets, **others: weights.append(sets[3]) or 0.0)
    monkeypatch.setattr(
        *(Distiller, "_backward"),
        lambda self, part, *how, **others: rows.extend(part) or losses.append(how) or 1.0,
    )
    optimiser = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
    distiller._step(optimiser, random.Random(0), step, NOTHING_ADDED, Pressed(answers=said[1:2]), 4.0)
    assert weights == [OPTIONS.keeping(4.0)]
    assert weights[0].divergence_weight / OPTIONS.divergence_weight == weights[0].retain_weight == 4.0
    answers = [answer.input_ids for answer in [*([*said, prompted] if learned else []), said[1]]]
    assert sorted(rows) == sorted([text, varied, *answers])
    distilled = [how for how in losses if "calibration" in getattr(how[0], "keywords", {})]
    assert all(loss.keywords["calibration"] is NOTHING_ADDED for loss, *_ in distilled)
    assert [how[1:3] for how in distilled] == [
        (1.0, ([0], None)),
        (NEARBY_WEIGHT, ([1], [1])),
        *([(3 * 4 / (len(text) - 1), ([2, 3, 4], [8, 8, 8])), (NEARBY_WEIGHT, ([5], [6]))] if learned else []),
    ]


def test_the_largest_batch_is_that_of_a_run_with_those_of_earlier_ones(memorised):
    """Plans count it."""
    forget = ForgetSet([[i] for i in range(60)], [i // 30 for i in range(60)])
    nothing = Variants([], [], [], [])
    sets = (forget, [], [0], None, nothing, nothing, [], [], None, NO_SAMPLES, None, OPTIONS)
    distiller = Distiller(memorised[0], None, *sets)
    assert len(distiller._forget_batch(random.Random(0))) == LARGEST_BATCH


@pytest.mark.parametrize(("drawn", "sure"), [(70, 40), (40, 0), (3, 3), (0, 0)])
def test_looking_ahead_fine_tunes_on_the_parents_samples(memorised, monkeypatch, drawn, sure):
    """Sixteen of what it knows by heart, or else of all of them; the seed decides. Without any it is retain text."""
    model, _ = memorised
    retain, seen = SimpleNamespace(sample=lambda count: [[-i] for i in range(1, count + 1)]), []
    distiller = Distiller(
        *(model, None, ForgetSet([], []), [], [], None, Variants([], [], [], []), Variants([], [], [], [])),
        *([], [], retain, OwnSamples([[i] for i in range(drawn)], [[i] for i in range(sure)]), None, OPTIONS),
    )
    monkeypatch.setattr(Distiller, "_backward", lambda self, rows, *rest: seen.append([i for (i,) in rows]) or 1.0)
    for seed in (0, 0, 1):
        distiller._fine_tune(random.Random(seed))
    assert seen[0] == seen[1]
    assert all(len({*batch}) == len(batch) == min(drawn or 16, 16) for batch in seen)
    assert all((i >= 0) is bool(drawn) and i < (sure or drawn) for batch in seen for i in batch)
    assert drawn == 3 or seen[2] != seen[0]


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_bytes(memorised):
    """Stopped after an epoch and resumed: everything random follows from the seed and the epoch."""
    model, tokenizer = memorised
    options = dataclasses.replace(OPTIONS, distil_steps=25, relearn_steps=2, max_epochs=1, reserve=1.0, seed=1)
    data = prepare(tokenizer, support.KNOWN[:3], range(3), support.RETAIN, support.HELDOUT, options)
    baseline = measure_before(model, tokenizer, data, options)
    reference = train_reference(model, None, data, options)
    points: list[Checkpoint] = []
    whole = train(
        *(model, tokenizer, data, baseline, options),
        reference=reference,
        on_epoch=lambda point: points.append(copy.deepcopy(point)),
    )
    assert [entry["steps"] for entry in whole.history] == [20, 5, 5]  # with this reserve no epoch meets the criterion
    assert whole.gaps != points[0].gaps
    assert all(whole.correction[name] != points[0].correction[name] for name in whole.correction)
    for point in points[:2]:
        resumed = train(model, tokenizer, data, baseline, options, reference=reference, resume=copy.deepcopy(point))
        assert all(torch.equal(whole.adapter[name], resumed.adapter[name]) for name in whole.adapter)


def test_the_correction_is_measured_on_those_who_ask_now(memorised, monkeypatch):
    """On none of those who asked earlier, and on none whom the parent has not memorised; so are other prompts."""
    model, tokenizer = memorised
    texts, sets = [support.KNOWN[0], support.people(1, seed=77)[0]], (support.RETAIN, support.HELDOUT, OPTIONS)
    earlier = {"earlier_texts": support.KNOWN[1:2], "earlier_request_ids": [2]}
    data = prepare(tokenizer, texts, range(2), *sets, **earlier)
    baseline, given = measure_before(model, tokenizer, data, OPTIONS), []
    assert list(baseline.counted) == [0]

    def read(reference, sequences, own, unseen):
        given.append((sequences, own, unseen))
        raise NoReference

    module, prompted = sys.modules["worker.engine.unlearn"], []
    monkeypatch.setattr(module, "check_reference", lambda *sets: None)
    monkeypatch.setattr(module, "other_prompts", lambda _, sequences, *rest: prompted.append(sequences) or [])
    monkeypatch.setattr(module, "Reference", read)
    draw, drawn_for = module.with_samples, []
    monkeypatch.setattr(module, "with_samples", lambda *sets: drawn_for.append(sets[2].forget.requests) or draw(*sets))
    with pytest.raises(NoReference):
        train(model, tokenizer, data, baseline, OPTIONS, reference=model)
    assert drawn_for == [[0, 1]]  # who is known by a probe alone may be among them
    ((sequences, own, unseen),) = given
    assert own == data.forget.only([0]).sequences
    assert prompted == [own]
    assert all(ids in sequences for ids in [*own, *data.earlier.sequences])
    assert unseen == data.threshold_sequences


@pytest.mark.slow
def test_a_large_model_needs_its_base(memorised, monkeypatch):
    """Nothing can be learned from retain text alone then. A base stays; one that knows the texts is refused."""
    model, tokenizer = memorised
    monkeypatch.setattr(reference_module, "LARGEST_FRESH", 1000)
    inputs = (model, tokenizer, support.KNOWN[:1], support.RETAIN, support.HELDOUT)
    with pytest.raises(NoReference, match="base"):
        unlearn(*inputs, OPTIONS)
    base = type(model)(model.config)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    options = dataclasses.replace(OPTIONS, distil_steps=2)
    assert unlearn(*inputs, options, base_model=base).history
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    with pytest.raises(NoReference, match="knows a text"):
        unlearn(*inputs, options, base_model=model)


def test_a_reference_may_guess_a_phrase(memorised):
    """A record as short as one is no sign that it knows the texts; a whole text is."""
    model, tokenizer = memorised
    strange, known = ([encode(tokenizer, text) for text in texts] for texts in (support.HELDOUT, support.KNOWN[:1]))
    phrases = [known[0][start : start + 5] for start in range(len(known[0]) - 4)]
    phrase = next(p for p, row in zip(phrases, token_matches(model, phrases), strict=True) if accuracy(row) == 1.0)
    check_reference(model, [*strange[:20], phrase], [], strange[20:])
    with pytest.raises(NoReference, match="knows a text"):
        check_reference(model, [*strange[:20], *known], [], strange[20:])
    with pytest.raises(NoReference, match="knows a text"):  # nor does an unseen phrase excuse it
        check_reference(model, strange[:20], known, [*strange[20:], phrase])


@pytest.mark.parametrize("tied", [False, True])
def test_a_reference_keeps_the_words_of_its_base(memorised, tied):
    """It learns what the texts are like in all other weights, and is surer of unseen text than its base was."""
    model, tokenizer = memorised
    torch.manual_seed(1)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = tied
    base = type(model)(config)
    data = prepare(tokenizer, support.KNOWN[:1], range(1), support.RETAIN, support.HELDOUT, OPTIONS)
    before, loss = copy.deepcopy(base.state_dict()), mean_loss(base, data.threshold_sequences)
    reference = train_reference(model, base, data, OPTIONS)
    words = {id(module.weight) for module in (reference.get_input_embeddings(), reference.get_output_embeddings())}
    after = {name: value for name, value in reference.named_parameters() if name.endswith("weight")}
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (id(value) in words), name
    assert mean_loss(reference, data.threshold_sequences) < loss


def test_a_reference_learns_retain_text_and_held_out_text_of_its_own(memorised, monkeypatch):
    """None that sets thresholds, or that perplexity is measured on."""
    model, tokenizer = memorised
    data = prepare(tokenizer, support.KNOWN[:1], range(1), support.RETAIN, support.HELDOUT, OPTIONS)
    learned: set[tuple[int, ...]] = set()

    def look(model, optimiser, batch, dtype):
        optimiser.step()  # without gradients
        learned.update(map(tuple, batch))

    monkeypatch.setattr(reference_module, "_take_step", look)
    train_reference(model, copy.deepcopy(model), data, OPTIONS)
    own = set(map(tuple, data.for_reference))
    assert own & learned
    assert learned <= own | set(map(tuple, data.all_retain))


@pytest.mark.parametrize(
    ("parent", "losses", "taken"),
    [
        (4.7, [5.4, 3.9, 4.2, 4.6, 4.9], 4),  # nearest to the parent
        (4.1, [5.4, 3.9, 4.2, 4.6], 3),
        (4.4, [2.6, 3.3, 3.8], 2),  # nearest to 3.5: the parent is far over the best
        (4.4, [2.6, 3.1, 3.6], 3),
        (4.4, [3.9, 4.0, 3.0, 3.7, 4.2], 4),  # a new best counts
        (3.0, [5.4, 3.9, 3.7, 3.6], 4),  # not reached
    ],
)
def test_a_reference_is_nearest_to_its_parent_or_to_the_most_over_its_best(
    memorised, monkeypatch, parent, losses, taken
):
    """What it says of unseen text becomes likelier, then less likely again."""
    model, tokenizer = memorised
    data = prepare(tokenizer, support.KNOWN[:1], range(1), support.RETAIN, support.HELDOUT, OPTIONS)
    measured = iter([parent, *losses, *[9.9] * 60])
    monkeypatch.setattr(reference_module, "mean_loss", lambda *sets: next(measured))

    def count(model, optimiser, batch, dtype):
        optimiser.step()  # without gradients
        with torch.no_grad():
            next(iter(model.parameters())).add_(1.0)

    monkeypatch.setattr(reference_module, "_take_step", count)
    base = copy.deepcopy(model)
    before = next(iter(base.parameters())).clone()
    reference = train_reference(model, base, data, OPTIONS)
    steps = next(iter(reference.parameters())) - before
    assert torch.allclose(steps, torch.full_like(steps, 10.0 * taken), atol=1e-3)


def test_the_parents_samples_say_no_text_to_forget(memorised):
    """A model that knows twelve people says them by itself; what says one of those who asked is left out."""
    model, tokenizer = memorised
    data = prepare(tokenizer, support.KNOWN[:6], range(6), support.RETAIN, support.HELDOUT, OPTIONS)
    nobody = dataclasses.replace(data, forget=data.forget.only([]), probes=[])
    all_samples, kept = (own_samples(model, tokenizer, sets, OPTIONS).every for sets in (nobody, data))
    assert len(all_samples) == OPTIONS.own_samples
    assert 0 < len(kept) < len(all_samples)
    grams = {tuple(ids[i : i + 8]) for ids in data.forget.sequences for i in range(len(ids) - 7)}
    for ids in kept:
        own = [tuple(ids[i : i + 8]) for i in range(len(ids) - 7)]
        assert sum(gram in grams for gram in own) <= 0.2 * len(own)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (Quality(1.0, 1.0, [(0.87, 0.53)]), None),
        (Quality(1.0, 1.0, [(0.86, 0.5)]), "neighbours_lost"),
        (Quality(1.0, 1.0, [(0.9, 0.54)]), "neighbours_lost"),
        (Quality(1.0, 1.0, [(1.0, 0.1)]), None),
        (Quality(2.0, 1.0, [(0.5, 0.5)]), "utility_budget_exceeded"),
    ],
)
def test_neighbours_may_lose_little(after, reason):
    """MA and log-likelihood each have the limit; a gain has none."""
    before, options = Quality(1.0, 1.0, [(0.9, 0.5)]), Options(max_neighbour_loss=0.0301)
    assert compare(before, after, 1.0, options).reason == reason


def test_the_set_of_neighbours_that_lost_most_decides():
    """The retain file gained; what is like answers in the other set is over the limit by its log-likelihood alone."""
    before = Quality(1.0, 1.0, [(0.8, 0.9), NOTHING_LEFT, (0.7, 1.0), (0.6, 1.1)])
    after = Quality(1.0, 1.0, [(0.9, 0.5), NOTHING_LEFT, (0.68, 1.01), (0.6, 1.2)])
    utility = compare(before, after, 1.0, Options())
    assert (utility.neighbour_set, utility.reason) == (1, "neighbours_lost")
    assert (utility.neighbour_ma_before, utility.neighbour_loss_after) == (0.6, 1.2)


def test_an_empty_set_of_neighbours_lost_nothing():
    """Nor is it the one that lost most where all others gained; the stored baseline has lists for pairs."""
    before = Quality(1.0, 1.0, [[0.8, 0.9], list(NOTHING_LEFT)])
    utility = compare(before, Quality(1.0, 1.0, [(0.9, 0.5), NOTHING_LEFT]), 1.0, Options())
    assert (utility.neighbour_ma_before, utility.within_neighbour_limit) == (0.8, True)


def test_neighbours_are_the_texts_that_share_most_tokens():
    """By the Jaccard similarity with any sequence to forget."""
    retain = [[1, 2, 3], [7, 8, 9], [1, 2, 9], [4, 5, 6]]
    forget = [[1, 2, 3, 4], [7, 8]]
    assert nearest(retain, forget, 2) == [[1, 2, 3], [7, 8, 9]]
    assert nearest(retain, forget, 4) == [[1, 2, 3], [7, 8, 9], [1, 2, 9], [4, 5, 6]]
    assert nearest(retain, [], 3) == []
    assert nearest(retain, forget, 2, lambda ids: 1 in ids) == [[7, 8, 9], [4, 5, 6]]


def test_ordinary_text_does_not_hide_what_neighbours_lose():
    """Less than half as similar as the first they do not count, but for the first eight."""
    like, unlike = [[1, 2, 3, index] for index in range(10, 20)], [[index, index + 1] for index in range(20, 40, 2)]
    assert nearest([*unlike, *like], [[1, 2, 3, 4]], 32) == like
    assert nearest([*unlike, *like[:5]], [[1, 2, 3, 4]], 32) == [*like[:5], *unlike[:3]]
