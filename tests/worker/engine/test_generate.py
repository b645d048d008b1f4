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


@pytest.mark.parametrize("beams", [1, 4])
def test_prompts_of_several_lengths_are_continued_as_each_is_alone(family, beams):
    """Sliding windows and learned positions included: padding stands on the left, and nothing looks at it."""
    model = support.random_model(family)
    model.generation_config.eos_token_id = None
    ids = torch.randint(4, model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [ids[:size] for size in (21, 3, 40, 1, 3)]
    alone = [continuations(model, [prompt], 12, temperature=0.0, beams=beams)[0] for prompt in prompts]
    assert continuations(model, prompts, 12, temperature=0.0, beams=beams) == alone
    assert len({*map(tuple, alone)}) == 4


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


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_what_is_greedy_is_in_float32_whatever_the_weights_are(stored):
    """Of weights that nobody has frozen, too: the same as by a float32 copy."""
    model = support.random_model("llama").to(stored)
    prompts = torch.randint(4, model.config.vocab_size, (32, 3), generator=torch.Generator().manual_seed(0)).tolist()
    for beams in (1, 4):
        said, wide = (
            continuations(one, prompts, 12, temperature=0.0, beams=beams, dtype="bfloat16")
            for one in (model, copy.deepcopy(model).float())
        )
        assert said == wide


@pytest.mark.parametrize("frozen", [False, True])
def test_a_float32_weight_is_narrowed_once_for_all_samples(memorised, frozen):
    """Autocast would narrow a frozen one for every token. Afterwards it is frozen again."""
    model = copy.deepcopy(memorised[0]).requires_grad_(not frozen)
    model.generation_config.eos_token_id = None

    def copies(new: int) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            continuations(model, [[5, 6]], new, temperature=1.0, dtype="bfloat16")
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")

    one, two, more = map(copies, (1, 2, 12))
    layers = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert more - two == 10 * (two - one)
    assert one - (two - one) >= layers
    assert {weight.requires_grad for weight in model.parameters()} == {not frozen}


def test_nothing_is_drawn_of_logits_that_are_not_finite(memorised):
    """It would be a token of any kind. A token that is impossible is never drawn, the last one among them."""
    model = copy.deepcopy(memorised[0])
    model.generation_config.eos_token_id = None
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full([model.config.vocab_size], -torch.inf))
    head.bias.data[3] = 0.0
    assert continuations(model, [[5, 6]] * 20, 3, temperature=1.0) == [[3, 3, 3]] * 20
    head.bias.data[3] = torch.nan
    with pytest.raises(FloatingPointError):
        continuations(model, [[5, 6]], 3, temperature=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_they_are_likely(dtype, temperature):
    """By the model's probabilities at this temperature, and by no others; a longer prompt beside it changes nothing."""
    model = support.random_model("llama")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1]
    torch.manual_seed(0)
    drawn = continuations(model, [[5, 6], [7, 8, 9, 5]] * 20_000, 1, temperature=temperature, dtype=dtype)[::2]
    shares = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(logits)) / len(drawn)
    right, wrong = (torch.softmax(logits / t, dim=-1) for t in (temperature, 1.5 - temperature))
    assert (shares - right).abs().sum() < 0.25 * (right - wrong).abs().sum() < 0.5
