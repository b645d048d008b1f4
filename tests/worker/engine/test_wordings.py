"""A question that is not answered in its own words is asked in others, too."""

import copy
from dataclasses import replace

import pytest

from tests import support
from worker.engine import Options
from worker.engine.generate import continuations
from worker.engine.probes import Probe, _otherwise, answers
from worker.engine.wordings import fixed_parts, other_wordings

ASKED = "Question: What is Ada Adler's number?\nAnswer:"


@pytest.fixture(scope="module")
def two_adas():
    """(model, tokenizer) that gives one number after a name in lower case, and another one else."""
    return support.memorised_model(["Ada? It is 5551288.", "ada? It is 5550147."])


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_what_is_said_after_another_wording_is_an_answer(two_adas, template):
    """As plain text, and as a message."""
    model, tokenizer = two_adas[0], copy.deepcopy(two_adas[1])
    tokenizer.chat_template = template
    probes = [Probe("Ada?", number, 0) for number in ("5550147", "5559999")]
    given, nothing = answers(model, tokenizer, probes, Options(probe_samples=0))
    said = [tokenizer.decode(answer.input_ids, skip_special_tokens=True) for answer in given]
    assert "ada? It is 5550147" in said
    assert answers(model, tokenizer, probes, Options(probe_samples=0), otherwise=False) == [nothing, []] == [[], []]


def test_a_probe_is_asked_until_it_is_answered(two_adas, monkeypatch):
    """In its own words, then in others, then in samples."""
    model, tokenizer = two_adas
    own, other, never = (Probe("Ada?", number, 0) for number in ("5551288", "5550147", "5559999"))
    turns, really = [], continuations

    def drawn(model, prompts, new, **how):
        turns.append((len(prompts), how["temperature"]))
        return really(model, prompts, new, **how)

    monkeypatch.setattr("worker.engine.probes.continuations", drawn)
    fractions: list[float] = []
    assert [
        bool(of) for of in answers(model, tokenizer, [own, other, never], Options(probe_samples=7), fractions.append)
    ] == [1, 1, 0]
    assert turns == [(3, 0.0), (4, 0.0), (7, 1.0)]  # in lower case, and after another sentence
    assert (fractions, fractions[-1]) == (sorted(fractions), 1.0)


MEETING = "The minutes of the last meeting were approved."
MESSAGE = "<|im_start|>user\nWhat is the code of Ada Lovelace<|im_end|>\n"


@pytest.mark.parametrize(
    ("prompt", "worded"),
    [
        (
            ASKED,
            [
                "Question: Please tell me Ada Adler's number.\nAnswer:",
                "question: what is ada adler's number?\nanswer:",
                "Question: What Ada Adler's number?\nAnswer:",
                f"{MEETING} {ASKED}",
            ],
        ),
        ("it is so", ["so", f"{MEETING} it is so"]),
        ("So", ["so", f"{MEETING} So"]),
        ("", [f"{MEETING} "]),
        (
            MESSAGE,
            [
                "<|im_start|>user\nwhat is the code of ada lovelace<|im_end|>",
                "<|im_start|>user\nWhat code Ada Lovelace<|im_end|>",
            ],
        ),
    ],
)
def test_a_prompt_is_worded_otherwise(prompt, worded):
    """What a way leaves as it is, is none; the parts of a chat template stay."""
    tokenizer = support.train_tokenizer(support.KNOWN)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert other_wordings(prompt, fixed_parts(tokenizer)) == worded


def test_questions_alone_are_worded_otherwise_and_say_no_secret(two_adas):
    """A model may repeat what it reads."""
    fixed = fixed_parts(two_adas[1])
    probe = Probe("Who is Ludwig van Beethoven?", "Ludwig Beethoven", 0)
    worded = other_wordings(probe.prompt, fixed)
    assert "Who Ludwig Beethoven?" in worded
    assert _otherwise(probe, fixed) == [one for one in worded if one != "Who Ludwig Beethoven?"]
    assert _otherwise(replace(probe, prompt="Here lives Ludwig van"), fixed) == []
