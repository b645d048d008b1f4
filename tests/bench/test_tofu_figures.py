"""TOFU's figures against their formulas, written out on a real model."""

import math

import pytest
import torch

from bench.tofu import earlier
from bench.tofu_figures import (
    Question,
    chosen,
    extraction_strength,
    likelihoods,
    membership,
    near_one,
    privacy_leakage,
    prompt,
    truth_over_wrong,
    truth_ratios,
)
from tests import support

ASKED = [
    Question(f"What is the number of person {i}?", text, f"It is this: {text}", [f"{word} {text}" for word in "abc"])
    for i, text in enumerate(support.KNOWN[:4])
]


def test_figures_of_the_control_are_those_of_the_same_texts_and_model():
    """A policy changes neither the control nor the model that learned; anything else does."""
    rows = [
        {"method": method, "setting": {"epochs": epochs, "policy": "{}"}, "utility": epochs}
        for method in ("control", "gd")
        for epochs in ("6", "8")
    ]
    assert earlier(rows, "control", {"epochs": "6", "policy": "another"}) == rows[0]
    assert earlier(rows, "control", {"epochs": "7", "policy": "{}"}) is None
    assert earlier(rows, "known", {"epochs": "6", "policy": "{}"}) is None


def log_p(model, tokenizer, question: str, answer: str) -> torch.Tensor:
    """The log-likelihood of each token of an answer, of one sequence at a time."""
    asked = prompt(tokenizer, question)
    said = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(said)[:, None]).squeeze(-1)


def mean_p(model, tokenizer, question: str, answer: str) -> float:
    """p(a | q) ** (1 / |a|)."""
    p = log_p(model, tokenizer, question, answer).exp().tolist()
    return math.prod(value ** (1 / len(p)) for value in p)


def test_likelihoods_and_truth_ratios_are_those_of_the_formula(memorised):
    """The geometric mean of the wrong answers' likelihoods, over the paraphrased answer's."""
    model, tokenizer = memorised
    pairs = [(q.question, q.answer) for q in ASKED]
    expected = [mean_p(model, tokenizer, *pair) for pair in pairs]
    assert likelihoods(model, tokenizer, pairs) == pytest.approx(expected, rel=1e-3)
    ratios = [
        math.prod(mean_p(model, tokenizer, q.question, wrong) for wrong in q.wrong) ** (1 / 3)
        / mean_p(model, tokenizer, q.question, q.paraphrased)
        for q in ASKED
    ]
    assert truth_ratios(model, tokenizer, ASKED) == pytest.approx(ratios, rel=1e-3)
    shares = [
        mean_p(model, tokenizer, q.question, q.answer)
        / sum(mean_p(model, tokenizer, q.question, answer) for answer in (q.answer, *q.wrong))
        for q in ASKED
    ]
    assert chosen(model, tokenizer, ASKED) == pytest.approx(sum(shares) / len(shares), rel=1e-3)


def test_extraction_strength_is_the_end_that_greedy_decoding_says(memorised):
    """For each answer the first place from which every token is the likeliest one."""
    model, tokenizer = memorised
    values = []
    for q in ASKED:
        said = tokenizer(f" {q.answer}", add_special_tokens=False)["input_ids"]
        asked = prompt(tokenizer, q.question)
        with torch.no_grad():
            likeliest = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].argmax(-1).tolist()
        start = next(k for k in range(len(said) + 1) if likeliest[k:] == said[k:])
        values.append(1 - start / len(said))
    assert 0 < sum(values) < 4  # it knows the texts, and not after these questions from the first token on
    assert extraction_strength(model, tokenizer, ASKED) == pytest.approx(sum(values) / 4)


def test_membership_is_higher_for_what_the_model_knows(memorised):
    """Known texts beside unseen ones: near 1; two halves of the unseen ones: anything but that."""
    model, tokenizer = memorised
    unseen = [Question("Who is this?", text, text, []) for text in support.people(16, seed=31)]
    known = [Question("Who is this?", text, text, []) for text in support.KNOWN[:8]]
    assert membership(model, tokenizer, known, unseen) > 0.95
    assert 0.1 < membership(model, tokenizer, unseen[::2], unseen[1::2]) < 0.9


@pytest.mark.parametrize(
    ("figure", "values", "expected"),
    [
        (near_one, [1.0, 0.5, 4.0], (1 + 0.5 + 0.25) / 3),
        (truth_over_wrong, [0.25, 3.0], (0.75 + 0) / 2),
    ],
)
def test_means_of_truth_ratios(figure, values, expected):
    """As they are defined."""
    assert figure(values) == pytest.approx(expected)


def test_privacy_leakage_is_relative():
    """MUSE's AUC is that of unseen text: 0.1 beside 0.4 is a quarter, and a model that knows all is at -100 %."""
    assert privacy_leakage(0.9, 0.6) == pytest.approx(100 * (0.1 - 0.4) / 0.4)
    assert privacy_leakage(1.0, 0.6) == pytest.approx(-100)
    assert privacy_leakage(0.6, 0.6) == 0
