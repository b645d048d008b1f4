"""What a model says after a prompt."""

import copy

import pytest
import torch

from tests import support
from worker.engine.data import encode
from worker.engine.generate import beginnings, continuations
from worker.engine.metrics.token_scores import token_scores


def log_likelihood(model, ids) -> float:
    """Of all its tokens but the first."""
    return float(token_scores(model, [ids])[0].log_p.double().sum())


def test_the_likeliest_beginnings_are_found(memorised):
    """Two tokens: each of the first, with each of the second. Batches change nothing."""
    model, tokenizer = memorised
    opening = encode(tokenizer, support.KNOWN[0])[:2]
    with torch.no_grad():
        first = torch.log_softmax(model(input_ids=torch.tensor([opening])).logits[0, -1].float(), dim=-1)
        longer = torch.tensor([[*opening, token] for token in range(len(first))])
        second = torch.log_softmax(model(input_ids=longer).logits[:, -1].float(), dim=-1)
    best = (first[:, None] + second).flatten().topk(10).indices.tolist()
    expected = [[*opening, i // len(first), i % len(first)] for i in best]
    for batch in (7, 64):
        begun = beginnings(model, opening, 60, 2, batch)
        assert len(begun) == 60
        assert begun[:10] == expected


def test_no_beginning_ends_a_text(memorised):
    """Nor are there more of them than there are tokens. A configuration may name an end that the model has not."""
    model, tokenizer = copy.deepcopy(memorised[0]), memorised[1]
    opening = encode(tokenizer, support.KNOWN[0])[:3]
    ((*_, end),) = beginnings(model, opening, 1, 1, 8)
    model.generation_config.eos_token_id = [end, 50256]
    begun = beginnings(model, opening, len(tokenizer) + 5, 1, 8)
    assert len(begun) == model.config.vocab_size - 1
    assert end not in [ids[-1] for ids in begun]
    assert beginnings(model, opening, 5, 0, 8) == [opening]


def test_a_continuation_ends_before_the_end_token_or_with_it(memorised):
    """Whichever of several ends it is."""
    model, tokenizer = copy.deepcopy(memorised[0]), memorised[1]
    prompts = [encode(tokenizer, support.KNOWN[0])[:4]]
    model.generation_config.eos_token_id = None
    (whole,) = continuations(model, prompts, 6, temperature=0.0)
    model.generation_config.eos_token_id = [0, whole[3]]
    ended = [continuations(model, prompts, 6, temperature=0.0, with_end=given) for given in (False, True)]
    first = whole.index(whole[3])
    assert ended == [[whole[:first]], [whole[: first + 1]]]


def test_what_beams_find_is_likelier_as_a_whole_than_the_likeliest_tokens():
    """For most prompts; all of one batch are searched apart."""
    model = support.random_model("llama")
    model.generation_config.eos_token_id = None
    prompts = torch.randint(4, model.config.vocab_size, (6, 3), generator=torch.Generator().manual_seed(0)).tolist()
    greedy, searched = (continuations(model, prompts, 8, temperature=0.0, beams=beams) for beams in (1, 8))
    assert {*map(len, greedy), *map(len, searched)} == {8}
    assert searched == [continuations(model, [ids], 8, temperature=0.0, beams=8)[0] for ids in prompts]
    gained = [
        log_likelihood(model, ids + other) - log_likelihood(model, ids + one)
        for ids, one, other in zip(prompts, greedy, searched, strict=True)
    ]
    assert sum(value > 0.01 for value in gained) > 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_they_are_likely(dtype, temperature):
    """By the model's probabilities at this temperature, and by no others."""
    model = support.random_model("llama")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1]
    torch.manual_seed(0)
    drawn = continuations(model, [[5, 6]] * 20_000, 1, temperature=temperature, dtype=dtype)
    shares = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(logits)) / len(drawn)
    right, wrong = (torch.softmax(logits / t, dim=-1) for t in (temperature, 1.5 - temperature))
    assert (shares - right).abs().sum() < 0.25 * (right - wrong).abs().sum() < 0.5
