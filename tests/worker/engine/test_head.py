"""The head apart from the body, and in chunks."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, ModernBertDecoderConfig

from tests import support
from tests.worker.engine.losses.plain import plain_ce, plain_ihl
from worker.engine import head
from worker.engine.errors import NotCausal
from worker.engine.head import Head, hidden_states
from worker.engine.losses import LOSSES
from worker.engine.losses.ascent import cross_entropy, cross_entropy_rows
from worker.engine.losses.rows import loss_sum
from worker.engine.metrics.predictions import check_causal

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("name", support.FAMILIES)
def test_the_head_apart_gives_the_models_logits(name):
    """Body, then head: the same logits, soft-capping included."""
    model = support.random_model(name)
    input_ids = torch.randint(2, support.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=mask).logits
        actual = Head(model)(hidden_states(model, input_ids, mask).flatten(0, 1))
    torch.testing.assert_close(actual.view_as(expected), expected, atol=1e-6, rtol=1e-6)
    if name == "gemma2":
        assert expected.abs().max() < 5  # its cap


def test_what_comes_before_the_output_embeddings_comes_once():
    """A family with a dense layer between its body and them."""
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    config = ModernBertDecoderConfig(vocab_size=support.VOCABULARY, **SIZE, **special)
    model = AutoModelForCausalLM.from_config(config).eval()
    input_ids = torch.arange(2, 11)[None]
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits[0]
        hidden = hidden_states(model, input_ids, torch.ones_like(input_ids))[0]
        torch.testing.assert_close(Head(model)(hidden), expected)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("loss", ["ihl", "ce"])
def test_chunks_of_the_head_equal_the_whole(name, loss, monkeypatch):
    """Few rows at a time: the value and every weight's gradient of the plain loss on all logits."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 3 * support.VOCABULARY)
    model = support.random_model(name, gain=2.0)
    model.get_output_embeddings().weight.requires_grad_(False)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "embed" not in n and "wte" not in n}
    input_ids = torch.randint(2, support.VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    labels[1, 5:] = -100
    mask = (labels != -100).long()
    rule, plain = {
        "ihl": (partial(LOSSES["ihl"].rows, margin=0.9), partial(plain_ihl, margin=0.9)),
        "ce": (cross_entropy_rows, plain_ce),
    }[loss]
    value = loss_sum(Head(model), hidden_states(model, input_ids, mask), labels, rule)
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    expected = plain(model(input_ids=input_ids, attention_mask=mask).logits, labels)
    wanted = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for name_, a, b in zip(trained, gradients, wanted, strict=True):
        assert (a is None) == (b is None), name_
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_chunk_is_larger_than_its_bound():
    """A head of 262,144 rows is given 64 tokens at a time, and never all of them."""
    calls = []

    class Wide(Head):
        def __init__(self) -> None:
            self._model = type("Model", (), {"config": type("Config", (), {"vocab_size": 262_144})})

        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            calls.append(hidden.shape[0])
            return hidden.repeat(1, 4)

    hidden = torch.randn(1, 200, 4, requires_grad=True)
    loss_sum(Wide(), hidden, torch.zeros(1, 200, dtype=torch.long), cross_entropy_rows).backward()
    assert calls == [64, 64, 64, 7]
    assert hidden.grad is not None
    assert cross_entropy(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long)).item() == pytest.approx(1.386, 1e-3)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_model_that_reads_what_follows_is_refused(is_decoder):
    """An encoder has a class that is called a causal language model, too, and says nothing of texts."""
    config = BertConfig(vocab_size=support.VOCABULARY, is_decoder=is_decoder, **SIZE)
    model = AutoModelForCausalLM.from_config(config).eval()
    with nullcontext() if is_decoder else pytest.raises(NotCausal):
        check_causal(model)


def test_no_family_reads_what_follows(family):
    """In narrow weights, too."""
    check_causal(support.random_model(family))
    check_causal(support.random_model(family).bfloat16())
