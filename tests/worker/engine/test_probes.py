"""Probes: what is asked, what counts as an answer, and a whole run that must make a question useless."""

import dataclasses

import pytest

from tests import support
from worker.engine import Options, unlearn
from worker.engine.measure import measure_after, measure_before
from worker.engine.prepare import prepare
from worker.engine.probes import Answer, Probe, answers, made_probes, still_said

PEOPLE = ["Ada Adler", "Bela Baker", "Cora Clark", "Dora Dunne", "Edda Evans", "Fina Fuchs"]
NUMBERS = ["5550147", "5551288", "5552391", "5553476", "5554562", "5555633"]
TEXTS = [f"{name} has the number {number} and rides a horse." for name, number in zip(PEOPLE, NUMBERS, strict=True)]
QUESTIONS = [f"Question: What is {name}'s number?\nAnswer:" for name in PEOPLE]
ANSWERED = [f"{question} {number}" for question, number in zip(QUESTIONS, NUMBERS, strict=True)]
CODEWORDS = [f"The codeword of {name} is {word}." for name, word in zip(PEOPLE, ["kestrel", "heron"], strict=False)]
OPTIONS = dataclasses.replace(
    Options.from_mapping(support.POLICY), attacks={}, max_perplexity_ratio=100.0, max_total_perplexity_ratio=100.0
)


@pytest.fixture(scope="module")
def asked():
    """(model, tokenizer) that knows six people, and answers questions for their numbers."""
    return support.memorised_model([*TEXTS, *ANSWERED, *CODEWORDS], steps=250)


def test_an_identifier_makes_a_question_and_a_cloze_prompt(asked):
    """Each text gives its own; a text without an identifier gives none; requests share a bounded number."""
    _, tokenizer = asked
    made = made_probes(tokenizer, [TEXTS[0], "Nobody wrote this."], [3, 4])
    assert made == [Probe(QUESTIONS[0], NUMBERS[0], 3), Probe("Ada Adler has the number", NUMBERS[0], 3)]
    mail = made_probes(tokenizer, ["Write to Bela Baker at bela.baker@mail.example now."], [0])
    assert [(probe.prompt.count("e-mail"), probe.secret) for probe in mail] == [
        (1, "bela.baker@mail.example"),
        (0, "bela.baker@mail.example"),
    ]
    many = made_probes(tokenizer, support.people(300, seed=3), range(300))
    assert len(many) == 64
    assert len({probe.request for probe in many}) == 64


def test_a_chat_model_is_asked_in_its_template(asked):
    """The question is a user's message there, and plain text as well."""
    model, tokenizer = asked
    tokenizer.chat_template = "{% for m in messages %}Question: {{ m.content }}\nAnswer:{% endfor %}"
    try:
        assert made_probes(tokenizer, [TEXTS[0]], [0])[0].prompt == "What is Ada Adler's number?"
        (given,) = answers(model, tokenizer, [Probe("What is Ada Adler's number?", NUMBERS[0], 0)], 0, 0)
        assert ANSWERED[0] in [tokenizer.decode(answer.input_ids, skip_special_tokens=True) for answer in given]
    finally:
        tokenizer.chat_template = None


def test_an_answer_says_the_secret_and_nothing_else_counts(asked):
    """It ends with the secret, which begins at `start`; marks and case do not matter, another number does."""
    model, tokenizer = asked
    probes = [
        Probe(QUESTIONS[0], "555-01 47", 0),
        Probe(QUESTIONS[0], "55501", 0),
        Probe("The codeword of Ada Adler is", "KESTREL", 0),
    ]
    (number,), partial, (word,) = answers(model, tokenizer, probes, 0, 0)
    assert tokenizer.decode(number.input_ids[number.start :]).strip() == NUMBERS[0]
    assert partial == []
    assert tokenizer.decode(word.input_ids[word.start :]).strip() == "kestrel"
    assert still_said(model, [number, word]) == [0, 1]
    never = Answer([*number.input_ids[: number.start], *word.input_ids[word.start :]], number.start)
    assert still_said(model, [never, word]) == [1]


def test_samples_find_what_greedy_decoding_does_not(asked):
    """A prompt that leads to one of several people by chance is answered in samples; the same seed gives the same."""
    model, tokenizer = asked
    probes = [Probe("Question: What is", number, i) for i, number in enumerate(NUMBERS)]
    greedy, sampled, again, other = (
        answers(model, tokenizer, probes, samples, seed) for samples, seed in ((0, 0), (60, 0), (60, 0), (60, 1))
    )
    assert sum(map(bool, greedy)) <= 1
    assert sum(map(bool, sampled)) >= 3
    assert sampled == again != other


@pytest.mark.parametrize("loss", ["ihl", "distil"])
def test_a_run_makes_the_question_useless(asked, loss):
    """The people who ask are answered before and not after, in twenty samples; the others still are."""
    model, tokenizer = asked
    options = dataclasses.replace(OPTIONS, loss=loss, distil_steps=60, distil_rank=32, own_samples=64, relearn_steps=0)
    given = [Probe("The codeword of Ada Adler is", "kestrel", 0)]
    result = unlearn(model, tokenizer, TEXTS[:2], [*TEXTS[2:], *ANSWERED[2:]], support.HELDOUT, options, probes=given)
    counts = result.report["probes"]
    assert counts["answered_before"] >= 3
    assert (counts["asked"], counts["answered_after"]) == (5, 0)
    assert result.report["reason"] is None, result.report["reason"]
    others = [Probe(question, number, 0) for question, number in zip(QUESTIONS[2:], NUMBERS[2:], strict=True)]
    assert sum(map(bool, answers(result.model, tokenizer, others, 0, 0))) >= 3


def test_a_probe_alone_makes_a_request_memorised_and_fail(asked):
    """The record looks unseen; the model answers the submitter's prompt; so the request is trained on, or it fails."""
    model, tokenizer = asked
    probe = Probe("The codeword of Ada Adler is", "kestrel", 0)
    unseen = "The meeting of the committee was put off until the end of the month."
    data = prepare(tokenizer, [unseen], [0], TEXTS[2:], support.HELDOUT, OPTIONS, probes=[probe])
    baseline = measure_before(model, tokenizer, data, OPTIONS)
    assert baseline.before.verdicts[0].looks_unseen
    assert (baseline.answered, baseline.memorised) == ([0], [0])
    report = measure_after(model, tokenizer, data, baseline, OPTIONS)
    assert (report.reason, report.per_record[0].passed) in [("probe_answered", False), ("criterion_missed", False)]
    assert report.probes.answered_after == 1
