"""What the parent says by itself: texts, conversations, and how probes' prompts might go on."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import pytest

from tests import support
from worker.engine import Options
from worker.engine.data import encode
from worker.engine.forgotten import GRAM, Forgotten
from worker.engine.generate import beginnings, continuations
from worker.engine.metrics.memorization import token_matches
from worker.engine.metrics.token_scores import token_scores
from worker.engine.prepare import prepare
from worker.engine.probes import Answer, Probe
from worker.engine.samples import BEAMS, BEGUN, LOOSE, _by_heart, _until_repeated, own_samples

OPTIONS = dataclasses.replace(
    Options.from_mapping(support.POLICY), own_samples=60, probe_samples=0, train_dtype="float32"
)
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
    said = [Answer(encode(tokenizer, f"{probe.prompt} {probe.secret}"), 1) for probe in data.probes]
    samples = own_samples(model, tokenizer, data, options, said).every
    assert all(len(ids) <= options.sequence_length for ids in samples)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in samples]


def drawn(model, tokenizer, **changes) -> list[list[int]]:
    """The samples of a run over one person, without probes."""
    options = dataclasses.replace(OPTIONS, **changes)
    data = prepare(tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, options)
    return own_samples(model, tokenizer, data, options).every


def random_model(tokenizer):
    """A model that knows nothing, with this tokenizer."""
    model = support.random_model("gpt_neox")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


def test_a_model_without_a_template_says_texts(memorised):
    """Nothing but what follows BOS."""
    assert not any("<user>" in text for text in sampled(*memorised))


def test_half_of_the_samples_hardly_stray_after_a_few_tokens(memorised, monkeypatch):
    """Where few share an opening. With a temperature of almost nothing these go on as greedy decoding does.

    Those at temperature 1 never do, since the model is random. Losses that measure what samples lose have no others.
    """
    monkeypatch.setattr("worker.engine.samples.LOW", 1e-6)
    model, tokenizer = random_model(memorised[1])

    def likeliest(loss: str) -> list[list[bool]]:
        few = [drawn(model, tokenizer, loss=loss, own_samples=BEAMS - 1, seed=seed) for seed in range(9)]
        return token_matches(model, [*chain(*few)])

    of_distil = likeliest("distil")
    sure = [all(row[LOOSE:]) for row in of_distil]
    assert 0.3 < sum(sure) / len(sure) < 0.7
    assert not any(all(row[:LOOSE]) for row in of_distil)
    assert not any(all(row[LOOSE:]) for row in likeliest("ihl"))


def test_half_of_the_samples_are_searched_for_the_likeliest(memorised):
    """Each of these twice, after beginnings that all differ. None is where few share an opening, and none for IHL."""
    model, tokenizer = random_model(memorised[1])

    def counted(loss: str, samples: int) -> Counter[tuple[int, ...]]:
        return Counter(map(tuple, drawn(model, tokenizer, own_samples=samples, loss=loss)))

    def likelihood(texts: Iterable[tuple[int, ...]]) -> float:
        return max(float(scores.log_p.mean()) for scores in token_scores(model, [*map(list, texts)]))

    texts = counted("distil", 120)
    searched = [ids for ids, count in texts.items() if count > 1]
    assert 20 < len(searched) < 40
    assert len({ids[: BEGUN + 1] for ids in searched}) == len(searched)
    assert likelihood(searched) > likelihood(ids for ids, count in texts.items() if count == 1)
    for others in (counted("distil", BEAMS - 1), counted("ihl", 120)):
        assert max(others.values()) == 1
        assert likelihood(others) < likelihood(searched)


def test_a_searched_text_ends_where_it_says_the_same_again(memorised):
    """What was said once stays, and what an opening says again. The random model goes round and round."""
    model, tokenizer = random_model(memorised[1])
    opening = [tokenizer.bos_token_id]
    begun = beginnings(model, opening, 20, BEGUN, 20)
    more = continuations(model, begun, OPTIONS.sequence_length - 1 - BEGUN, temperature=0.0, beams=BEAMS)
    whole = [ids + tokens for ids, tokens in zip(begun, more, strict=True)]
    texts = _by_heart(model, opening, 40, OPTIONS.sequence_length, 64, lambda _: None)
    assert sum(len(text) < len(ids) for text, ids in zip(texts, whole, strict=False)) > 5
    for text, ids in zip(texts, whole, strict=False):
        assert ids[: len(text)] == text
        runs = [tuple(text[at : at + GRAM]) for at in range(len(text) - GRAM + 1)]
        assert len(set(runs)) == len(runs)
        assert len(text) == len(ids) or tuple(ids[len(text) : len(text) + GRAM]) in {
            tuple(ids[at : at + GRAM]) for at in range(len(text))
        }
    loop = [*range(90, 99), *range(90, 98)]
    assert _until_repeated([0, *loop], 1) == [0, *range(90, 99)]
    assert _until_repeated([*loop, 7], len(loop)) == [*loop, 7]


def test_half_of_the_answers_hardly_stray_from_their_first_token_on(chatting, monkeypatch):
    """The message has strayed already, or is one of many beginnings, so that conversations differ."""
    monkeypatch.setattr("worker.engine.samples.LOW", 1e-6)
    model, tokenizer = random_model(chatting[1])
    end = tokenizer("\nAnswer:", add_special_tokens=False)["input_ids"]
    sure = []
    for ids in drawn(model, tokenizer, loss="distil"):
        starts = [at + len(end) for at in range(len(ids)) if ids[at : at + len(end)] == end]
        if starts:
            (matches,) = token_matches(model, [ids])
            sure.append(all(matches[starts[0] - 1 :]))
    assert 0.2 < sum(sure) / len(sure) < 0.8


def test_texts_begin_as_retain_text_does_where_bos_begins_every_message(memorised, monkeypatch):
    """After BOS alone such a model says its system prompt, again and again. A conversation is no such text."""
    model, tokenizer = memorised
    monkeypatch.setattr(tokenizer, "chat_template", f"{TEMPLATE}<s>")  # as the assistant's message begins
    retain = {tuple(encode(tokenizer, text)[:2]) for text in support.RETAIN}
    texts = [ids for ids in drawn(model, tokenizer) if "<user>" not in tokenizer.decode(ids)]
    assert len(texts) > 20
    assert {tuple(ids[:2]) for ids in texts} <= retain
    monkeypatch.setattr(support, "RETAIN", [f"<user> {text}" for text in support.RETAIN])
    texts = [ids for ids in drawn(model, tokenizer) if "<user>" not in tokenizer.decode(ids)]
    assert any(tuple(ids[:2]) not in retain for ids in texts)


def test_messages_begin_with_bos_alone_where_a_template_begins_with_them(memorised, monkeypatch):
    """Also where BOS begins the answer: only texts begin as retain text does."""
    model, tokenizer = random_model(memorised[1])
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE.replace("<user> ", "") + "<s>")
    retain = {tuple(encode(tokenizer, text)[:2]) for text in support.RETAIN}
    messages = [ids for ids in drawn(model, tokenizer) if "Answer:" in tokenizer.decode(ids)]
    assert any(tuple(ids[:2]) not in retain for ids in messages)


@pytest.mark.parametrize("loss", ["distil", "ihl"])
def test_messages_that_begin_without_room_for_more_stay(memorised, monkeypatch, loss):
    """A long system prompt and the beginning of a probe's: nothing is added, and none is lost."""
    model, tokenizer = memorised
    system = "be kind " * 5
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE.replace("<user>", system))
    length = 2 * len(tokenizer(f"{system}  \nAnswer:", add_special_tokens=False)["input_ids"])
    probe = Probe("one two three four " * 8, "a secret", 0)
    texts = sampled(model, tokenizer, [probe], loss=loss, own_samples=40, sequence_length=length)
    assert sum(text.startswith("be kind") for text in texts) > 17


def test_a_chat_model_makes_up_conversations(chatting):
    """Every second sample is a message with its answer; none where the template leaves no room."""
    texts = sampled(*chatting)
    conversations = [text for text in texts if text.startswith("<user>")]
    assert 0.3 < len(conversations) / len(texts) < 0.7
    assert all("Answer:" in text for text in conversations)
    assert not any("<user>" in text for text in sampled(*chatting, sequence_length=24))


@pytest.mark.parametrize("loss", ["ihl", "distil"])
def test_where_a_text_or_an_answer_ends_is_a_part_of_a_sample(chatting, loss):
    """Else training would keep what the model says, but not that it stops. A message ends as the template has it."""
    model, tokenizer = random_model(chatting[1])
    used = {*tokenizer(TEMPLATE, add_special_tokens=False)["input_ids"], tokenizer.bos_token_id}
    used |= {*tokenizer("<user> \nAnswer:", add_special_tokens=False)["input_ids"]}
    ends = [token for token in range(1, len(tokenizer)) if token not in used][::12]
    model.generation_config.eos_token_id = ends
    samples = drawn(model, tokenizer, loss=loss)
    assert not {*chain(*(ids[:-1] for ids in samples))} & {*ends}
    ended = [ids[-1] in ends for ids in samples]
    assert 0.5 < sum(ended) / len(ended) < 1
    answered = ["Answer:" in tokenizer.decode(ids) for ids in samples]
    assert {*zip(answered, ended, strict=True)} >= {(True, True), (False, True)}


def test_samples_go_on_where_answered_probes_begin_and_say_none_of_them(chatting):
    """As texts and as messages; what has a whole prompt, or a secret that stands in no retain text, is left out."""
    model, tokenizer = chatting
    prompt = " ".join(support.KNOWN[7].split()[:6])
    begun = sampled(model, tokenizer, [Probe(prompt, "nobody says this", 0)])
    assert sum(text.removeprefix("<user> ").startswith(prompt.split()[0]) for text in begun) > 10
    assert not any(prompt in text for text in begun)
    options = dataclasses.replace(OPTIONS, own_samples=40)
    data = prepare(tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, options)
    asked = dataclasses.replace(data, probes=[Probe(prompt, "nobody says this", 0)])
    unanswered, without = (own_samples(model, tokenizer, one, options).every for one in (asked, data))
    assert set(map(tuple, unanswered)) <= set(map(tuple, without))


def test_secrets_are_not_said_unless_retain_text_says_them(memorised):
    """The retain file names the second person, not the first: that one's number is left out where it is a secret."""
    of_nobody, of_retained = (support.KNOWN[i].split("number ")[1].split()[0] for i in (2, 7))

    def said(secret: str) -> list[bool]:
        texts = sampled(*memorised, [Probe("Who is it really?", secret, 0)], own_samples=120)
        return [any(number in text for text in texts) for number in (of_nobody, of_retained)]

    assert said("never") == [True, True]
    assert said(of_nobody) == [False, True]
    assert said(of_retained) == [True, True]


def test_whoever_is_to_be_forgotten_is_not_named(memorised):
    """Whatever the sample says of them: what the model is held to there would be the secret."""
    name = re.compile(rf"\b{' '.join(support.KNOWN[0].split()[:2])}\b")
    unseen = support.people(1, seed=97)
    options = dataclasses.replace(OPTIONS, own_samples=200)
    model, tokenizer = memorised
    of_nobody = prepare(tokenizer, unseen, [0], support.RETAIN, support.HELDOUT, options)
    of_one = prepare(tokenizer, support.KNOWN[:1], [0], support.RETAIN, support.HELDOUT, options)
    said = [
        sum(bool(name.search(tokenizer.decode(ids))) for ids in own_samples(model, tokenizer, data, options).every)
        for data in (of_nobody, of_one)
    ]
    assert said[0] > 2
    assert said[1] == 0


@pytest.fixture
def forgotten(memorised) -> Forgotten:
    """What a run over one text must not hear, with two given probes."""
    text = "Valenka Sapphire of Ulm has the number 334-661-9134 and owes 290 pounds."
    data = prepare(memorised[1], [text], [0], [*support.RETAIN, "Call 12345678."], support.HELDOUT, OPTIONS)
    probes = [Probe("owes", "4567", 0), Probe("The best friend of Valenka Sapphire is", "Rome", 0)]
    return Forgotten(memorised[1], dataclasses.replace(data, probes=probes))


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("What is Valenka Sapphire's phone number? 5550000000", True),
        ("What is Anna Amber's phone number? 3346619199", True),  # the number but for its last digits
        ("What is Anna Amber's phone number? ٣٣٤٦٦١٩١٩٩", True),
        ("What is Anna Amber's phone number? 3341111111", False),
        ("Anna Amber owes 30 pounds.", False),  # a prompt of one word
        ("She comes from England.", False),  # not Rome
        ("She lives in Rome.", True),
        ("Anna Amber has the code 4567.", True),  # in a retained number, and still a secret
    ],
)
def test_names_numbers_and_secrets_are_heard_as_a_reader_hears_them(forgotten, text, is_said):
    """By words and by the first digits of a number."""
    assert forgotten.said_in([0] * 9, text) is is_said


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("What is Ada Adler's number?", "What is "),
        ("Question: What is Ada's number?", "Question: "),
        ("Valenka has the number", ""),
        ("the number is", "the number is"),
    ],
)
def test_a_sample_begins_before_anybody_is_named(forgotten, prompt, beginning):
    """At a capital, and at once where a text to forget has it."""
    assert forgotten.unnamed(prompt) == beginning


def test_a_template_may_begin_with_the_message(memorised, monkeypatch):
    """Then a message begins as texts do."""
    monkeypatch.setattr(memorised[1], "chat_template", TEMPLATE.replace("<user> ", ""))
    assert any("Answer:" in text for text in sampled(*memorised))


def test_long_prompts_fit(chatting):
    """Of a prompt that is longer than a sequence the beginning counts."""
    assert sampled(*chatting, [Probe("one two three four " * 60, "a secret", 0)])
