"""What is pressed on after the fixed steps: the model's own words, where they say a text to forget."""

import copy
import random
from functools import partial

import pytest
import torch

from tests import support
from worker.engine import Options
from worker.engine.criterion import Judgement, Threshold, Verdict
from worker.engine.data import encode
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import extraction_likelihoods, greedy_decodings
from worker.engine.losses.rows import add_gradients
from worker.engine.metrics.decode import GreedyDecoding
from worker.engine.metrics.extraction import extracted_chains
from worker.engine.pressing import Pressed, extracted, failed_by_el, grouped

LIMITS = Threshold(12, 3, 40, 0.1, 0.3, 0.2, 0.6, 0.0, 0.5, 0.7)


def test_a_chain_is_a_prefix_and_what_follows_up_to_an_n_gram_of_the_rest():
    """The n-gram may come late and at another place; one that stands before the prefix does not count."""
    x = [1, 2, 3, 4, 5, 6, 7]
    continuations = [[9, 4, 5, 6, 9, 9], [3, 4, 9, 1, 2], [4, 5, 9, 9], [1, 2, 3], [], []]
    assert extracted_chains(GreedyDecoding(x, [], continuations), 3) == [[1, 9, 4, 5, 6]]
    assert extracted_chains(GreedyDecoding(x, [], continuations), 2) == [[1, 9, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_pressing_on_what_is_extracted_lowers_el(memorised):
    """Single tokens of the model's own words suffice: EL of the pressed request falls."""
    model, tokenizer = copy.deepcopy(memorised[0]), memorised[1]
    options = Options.from_mapping(support.POLICY)
    forget = ForgetSet([encode(tokenizer, text) for text in support.KNOWN[:2]], [0, 1])
    before = extraction_likelihoods(model, forget.sequences, [LIMITS] * 2, options)
    assert min(before) > 0.5
    at_first, said = extracted(model, forget, [LIMITS] * 2, [0], options)
    assert said == {0}
    assert all(answer.start == len(answer.input_ids) - 1 for answer in at_first)
    assert extracted(model, forget, [LIMITS] * 2, [], options) == ([], set())
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(6):
        pressed = Pressed(extracted=extracted(model, forget, [LIMITS] * 2, [0], options)[0])
        for step in range(4):
            optimiser.zero_grad()
            pressed.add_gradients(
                random.Random(step),
                lambda ids, rows, weight, beside=None, starts=None: add_gradients(
                    model, ids, rows, weight, beside, starts
                ),
                6 * 64,
            )
            optimiser.step()
    after = extraction_likelihoods(model, forget.sequences, [LIMITS] * 2, options)
    assert after[0] < 0.2 * before[0]


def test_some_tokens_are_pressed_on_last(memorised):
    """Another token of each n-gram goes first; where there is none, it is as if there were no difference."""
    model, tokenizer = memorised
    forget = ForgetSet([encode(tokenizer, support.KNOWN[0])], [0])
    press = partial(extracted, model, forget, [LIMITS], [0], Options.from_mapping(support.POLICY))
    at_first = [answer.input_ids for answer in press()[0]]
    last = {ids[-1] for ids in at_first[:2]}
    chosen = [answer.input_ids[-1] for answer in press(last)[0]]
    assert len(chosen) == len(at_first)
    assert not last & {*chosen}
    assert [answer.input_ids for answer in press({*forget.sequences[0]})[0]] == at_first


def test_pressing_on_rows_trains_on_these_alone(memorised):
    """The gradients are those of the mean of IHL over the tokens that these rows predict."""
    model, tokenizer = copy.deepcopy(memorised[0]).requires_grad_(True), memorised[1]
    sequences = [encode(tokenizer, text) for text in support.KNOWN[:3]]
    pressed = Pressed(grouped(sequences, {(2, 5), (0, 3), (0, 0)}))
    assert pressed.rows == [(sequences[0], [0, 3]), (sequences[2], [5])]
    value = pressed.add_gradients(random.Random(0), partial(add_gradients, model), 6 * 64)
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]  # not the head's own
    gradients = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    losses = []
    for ids, row in ((sequences[0], 0), (sequences[0], 3), (sequences[2], 5)):
        p = model(input_ids=torch.tensor([ids])).logits[0, row].softmax(-1)
        others = torch.cat([p[: ids[row + 1]], p[ids[row + 1] + 1 :]])
        losses.append((0.1 + p[ids[row + 1]] - others.max()).clamp(min=0.0))
    literal = torch.stack(losses).mean()
    literal.backward()
    assert value == pytest.approx(float(literal.detach()), rel=1e-4)
    for value, parameter in zip(gradients, trained, strict=True):
        torch.testing.assert_close(value, parameter.grad, atol=1e-6, rtol=1e-3)


def test_those_of_the_highest_el_fail_until_the_mean_of_the_others_passes():
    """And whoever has a verdict that fails."""
    verdicts = tuple(Verdict(i, el, 0.1, 0.5, 0.5, i != 0, False, False) for i, el in enumerate((0.0, 0.1, 0.4, 0.3)))
    judgement = Judgement(el=0.2, ma=0.1, el_limit=0.03, ma_limit=0.5, verdicts=verdicts)
    forget = ForgetSet([[0, 1]] * 4, [0, 1, 2, 3])
    assert failed_by_el(judgement, forget, [0, 1, 2, 3]) == {0, 2, 3}
    assert failed_by_el(judgement, forget, [0]) == {0}


def test_a_long_request_weighs_as_much_as_its_sequences():
    """The set's mean is over sequences: nine of EL 0.02 and one of 0 are over 0.01."""
    verdicts = tuple(Verdict(i, el, 0.1, 0.5, 0.5, True, False, False) for i, el in enumerate((0.02, 0.0)))
    judgement = Judgement(el=0.018, ma=0.1, el_limit=0.01, ma_limit=0.5, verdicts=verdicts)
    assert failed_by_el(judgement, ForgetSet([[0, 1]] * 10, [0] * 9 + [1]), [0, 1]) == {0}


def test_the_best_known_sequences_of_many_are_decoded(memorised, monkeypatch):
    """Decoding is bounded: one of three sequences here, the one that the model says best."""
    model, tokenizer = memorised
    decoded = []
    monkeypatch.setattr("worker.engine.pressing.MOST_DECODED", 1)
    monkeypatch.setattr(
        "worker.engine.pressing.greedy_decodings",
        lambda model, ids, *others: decoded.append(ids) or greedy_decodings(model, ids, *others),
    )
    texts = [support.HELDOUT[0], support.KNOWN[0], support.HELDOUT[1]]
    forget = ForgetSet([encode(tokenizer, text) for text in texts], [0, 0, 0])
    extracted(model, forget, [LIMITS] * 3, [0], Options.from_mapping(support.POLICY))
    assert decoded == [[forget.sequences[1]]]
