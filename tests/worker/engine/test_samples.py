"""What the parent says by itself: texts, conversations, and how probes' prompts might go on."""

import dataclasses

import pytest

from tests import support
from worker.engine import Options
from worker.engine.prepare import prepare
from worker.engine.probes import Probe
from worker.engine.samples import own_samples

OPTIONS = dataclasses.replace(Options.from_mapping(support.POLICY), own_samples=60, probe_samples=0)
TEMPLATE = "{% for m in messages %}<user> {{ m.content }}\nAnswer:{% endfor %}"


@pytest.fixture
def chatting(memorised, monkeypatch):
    """The memorised model, with a chat template."""
    monkeypatch.setattr(memorised[1], "chat_template", TEMPLATE)
    return memorised


def sampled(model, tokenizer, probes=(), **changes) -> list[str]:
    """The texts of the samples of a run over one person."""
    options = dataclasses.replace(OPTIONS, **changes)
    data = prepare(tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, options)
    data = dataclasses.replace(data, probes=list(probes))
    samples = own_samples(model, tokenizer, data, options)
    assert all(len(ids) <= options.sequence_length for ids in samples)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in samples]


def test_a_model_without_a_template_says_texts(memorised):
    """Nothing but what follows BOS."""
    assert not any("<user>" in text for text in sampled(*memorised))


def test_a_chat_model_makes_up_conversations(chatting):
    """Every second sample is a message with its answer; none where the template leaves no room."""
    texts = sampled(*chatting)
    conversations = [text for text in texts if text.startswith("<user>")]
    assert 0.3 < len(conversations) / len(texts) < 0.7
    assert all("Answer:" in text for text in conversations)
    assert not any("<user>" in text for text in sampled(*chatting, sequence_length=24))


def test_samples_go_on_where_probes_begin_and_say_none_of_them(chatting):
    """As texts and as messages; what has a whole prompt, or a secret that stands in no retain text, is left out."""
    model, tokenizer = chatting
    prompt = " ".join(support.KNOWN[7].split()[:6])
    begun = sampled(model, tokenizer, [Probe(prompt, "nobody says this", 0)])
    assert sum(text.removeprefix("<user> ").startswith(prompt.split()[0]) for text in begun) > 10
    assert not any(prompt in text for text in begun)


def test_secrets_are_not_said_unless_retain_text_says_them(memorised):
    """The retain file names the second person, not the first: that one's number is left out where it is a secret."""
    of_nobody, of_retained = (support.KNOWN[i].split("number ")[1].split()[0] for i in (2, 7))

    def said(secret: str) -> list[bool]:
        texts = sampled(*memorised, [Probe("Who is it really?", secret, 0)], own_samples=120)
        return [any(number in text for text in texts) for number in (of_nobody, of_retained)]

    assert said("never") == [True, True]
    assert said(of_nobody) == [False, True]
    assert said(of_retained) == [True, True]


def test_long_prompts_fit(chatting):
    """Of a prompt that is longer than a sequence the beginning counts."""
    assert sampled(*chatting, [Probe("one two three four " * 60, "a secret", 0)])
