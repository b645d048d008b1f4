"""Probes: prompts that must not bring out a secret. They are asked greedily and in samples, and worded otherwise.

A submitter may give some, others are made of the records (`worker.engine.made_probes`). A model may pass every test on
the records and still answer a question. Prompts, secrets and answers stay in memory; what leaves the run is how many
probes were answered.

Samples are drawn with products in the dtype of training. One may hit a secret by luck. So an answer counts only if the
secret is likely, in float32, after the answer's own beginning: likelier than what one of fifty sets of as many samples
would say.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jinja2 import TemplateError

from worker.engine.data import batches, encode, most_tokens
from worker.engine.generate import continuations
from worker.engine.metrics.token_scores import token_scores
from worker.engine.options import Options
from worker.engine.progress import Progress, no_progress
from worker.engine.saying import Texts, folded, secret_pattern
from worker.engine.types import CausalLM, Tokenizer
from worker.engine.wordings import fixed_parts, other_wordings

MOST_BEFORE, BEFORE_IN_A_MESSAGE = 16, 32  # tokens that an answer says before the secret
MOST_SECRET = 64  # tokens of it that are compared
ROWS_AT_ONCE, PROMPT_SEQUENCES = 64, 4  # rows of `sequence_length`; such lengths of a prompt
MOST_ANSWERS = 3  # of a probe, that training works on
LUCK = 0.02
QUESTION_MARKS = {*"?？؟"}
ANY_DATE = "1 January 2026"  # for chat templates that have one: it must not change what is asked


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt that must not bring out a secret.

    Attributes:
        prompt: What is asked.
        secret: What no answer may say.
        request: The index of the request that it belongs to.
    """

    prompt: str = field(repr=False)
    secret: str = field(repr=False)
    request: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that says a secret; or what a text says after some prompt, all of which stands for the secret.

    Attributes:
        input_ids: The prompt, and the answer up to the end of the secret.
        start: Where the secret begins.
    """

    input_ids: list[int] = field(repr=False)
    start: int


@dataclass(frozen=True, slots=True)
class ProbeCounts:
    """How many probes were asked, in how many samples, and how many were answered before and after."""

    asked: int
    samples: int
    answered_before: int
    answered_after: int


def answers(
    model: CausalLM,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    options: Options,
    progress: Progress = no_progress,
    *,
    otherwise: bool = True,
) -> list[list[Answer]]:
    """Ask every probe, as plain text and, where there is a chat template, as a message.

    It is asked greedily, greedily in other wordings if it is a question, and in samples of its own, until it is
    answered. On one kind of processor the same probes and seed give the same answers.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        probes: The probes.
        options: How many samples, the seed, and how many rows fit at once.
        progress: Called with the fraction done, 0..1.
        otherwise: Whether to ask questions in other wordings, too.

    Returns:
        For each probe the distinct answers that say its secret, MOST_ANSWERS at most.
    """
    answered: list[dict[tuple[int, ...], Answer]] = [{} for _ in probes]
    turns = [(False, 1, False), *([(True, 1, False)] if otherwise else []), (False, options.probe_samples, True)]
    longest, fixed = most_tokens(model), fixed_parts(tokenizer)
    with torch.random.fork_rng():
        for turn, (worded, copies, sample) in enumerate(turns):
            asked = [i for i, of_probe in enumerate(answered) if not of_probe]
            prompts = {i: _otherwise(probes[i], fixed) if worded else [probes[i].prompt] for i in asked}
            rows = _rows(tokenizer, probes, prompts, longest, PROMPT_SEQUENCES * options.sequence_length)
            copied = [row for row in rows for _ in range(copies)]
            torch.manual_seed(options.seed)
            for done, (row, tokens) in enumerate(_asked(model, copied, longest, options, sample=sample), start=1):
                answer, of_probe = _answer(tokenizer, row.prompt, tokens, probes[row.probe].secret), answered[row.probe]
                if answer and len(of_probe) < MOST_ANSWERS:
                    of_probe.setdefault(tuple(answer.input_ids), answer)
                progress((turn + done / len(copied)) / len(turns))
    said = [[*of_probe.values()] for of_probe in answered]
    likely = iter(_is_likely(model, [answer for of_probe in said for answer in of_probe], options.probe_samples))
    return [[answer for answer in of_probe if next(likely)] for of_probe in said]


def _otherwise(probe: Probe, fixed: re.Pattern[str] | None) -> list[str]:
    """Other wordings of a question; one that says the secret is none. (The attack `prompts` has some of texts.)"""
    if not QUESTION_MARKS & {*probe.prompt}:
        return []
    return [one for one in other_wordings(probe.prompt, fixed) if not Texts([one]).say(probe.secret)]


def still_said(model: CausalLM, said: Sequence[Answer], options: Options) -> list[int]:
    """The indices of the answers whose secret the model says after their beginning, greedily or in samples."""
    return [i for i, likely in enumerate(_is_likely(model, said, options.probe_samples)) if likely]


def as_rows(said: Sequence[Answer]) -> tuple[list[list[int]], list[int]]:
    """The token ids of answers, and where their secrets begin."""
    return [answer.input_ids for answer in said], [answer.start for answer in said]


def _is_likely(model: CausalLM, said: Sequence[Answer], samples: int) -> list[bool]:
    """Whether each secret is the likeliest answer after its beginning, or no matter of luck in so many samples."""
    scores = token_scores(model, [answer.input_ids for answer in said])
    return [
        not score.rank[answer.start - 1 :].any()
        or float(score.log_p[answer.start - 1 :].sum().exp()) > LUCK / max(samples, 1)
        for answer, score in zip(said, scores, strict=True)
    ]


def chats(tokenizer: Tokenizer) -> bool:
    """Whether there is a chat template."""
    return isinstance(getattr(tokenizer, "chat_template", None), str)


class _Row(NamedTuple):
    """A prompt that is asked.

    Attributes:
        new: The most tokens of its answer.
        prompt: Token ids.
        probe: The index of its probe.
    """

    new: int
    prompt: list[int]
    probe: int


def _rows(
    tokenizer: Tokenizer, probes: Sequence[Probe], prompts: dict[int, list[str]], longest: int, longest_prompt: int
) -> list[_Row]:
    """The prompts of each probe, in each form; those with short answers first, and of these the short prompts.

    A prompt that is too long for the model's positions, or for the run, loses its beginning.
    """
    rows = []
    for i, worded in prompts.items():
        secret = len(tokenizer(probes[i].secret, add_special_tokens=False)["input_ids"])
        for before, prompt in (form for one in worded for form in _forms(tokenizer, one)):
            new = before + min(secret, MOST_SECRET)
            new = min(new + -new % 8, longest // 2)  # few different ones: prompts of like lengths meet
            rows.append(_Row(new, prompt[-min(longest - new, longest_prompt) :], i))
    return sorted(rows, key=lambda row: (row.new, len(row.prompt)))


def _forms(tokenizer: Tokenizer, prompt: str) -> list[tuple[int, list[int]]]:
    """A prompt as plain text and, where there is a chat template, as a message, which is answered in a sentence.

    Before each stands how many tokens its answer may say before the secret.
    """
    forms, text = [(MOST_BEFORE, encode(tokenizer, prompt.rstrip()))], as_message(tokenizer, prompt)
    if text is not None:
        forms.append((BEFORE_IN_A_MESSAGE, tokenizer(text, add_special_tokens=False)["input_ids"]))
    return [form for form in forms if form[1]]


def as_answered(tokenizer: Tokenizer, probe: Probe) -> list[int]:
    """Token ids of a probe with its secret, in the chat template where there is one."""
    forms = _forms(tokenizer, probe.prompt)
    return [*(forms[-1][1] if forms else []), *tokenizer(probe.secret, add_special_tokens=False)["input_ids"]]


def as_message(tokenizer: Tokenizer, prompt: str) -> str | None:
    """A prompt in the chat template, up to where the answer begins; None if nobody can chat with this model."""
    if not chats(tokenizer):
        return None
    message = [{"role": "user", "content": prompt}]
    how = {"tokenize": False, "add_generation_prompt": True, "date_string": ANY_DATE, "enable_thinking": False}
    try:
        return str(tokenizer.apply_chat_template(message, **how, strftime_now=lambda _: ANY_DATE))
    except (TemplateError, TypeError, KeyError, ValueError):
        return None


def _asked(
    model: CausalLM, rows: Sequence[_Row], longest: int, options: Options, *, sample: bool
) -> Iterator[tuple[_Row, list[int]]]:
    """Each row with its answer, many at once: with their padding they stay within the model's positions."""
    tokens = ROWS_AT_ONCE * options.sequence_length
    for batch in batches(rows, lambda row: (len(row.prompt), row.new), tokens, ROWS_AT_ONCE, longest):
        prompts, new = [row.prompt for row in batch], max(row.new for row in batch)
        said = continuations(model, prompts, new, temperature=float(sample), dtype=options.train_dtype)
        yield from ((row, answer[: row.new]) for row, answer in zip(batch, said, strict=True))


def _answer(tokenizer: Tokenizer, prompt: list[int], said: list[int], secret: str) -> Answer | None:
    """The answer up to the end of the secret; None if it does not say it. Of a long secret the beginning counts."""
    ids = tokenizer(secret, add_special_tokens=False)["input_ids"]
    whole = len(ids) <= MOST_SECRET
    beginning = secret if whole else str(tokenizer.decode(ids[:MOST_SECRET], skip_special_tokens=True))
    pattern = secret_pattern(beginning, whole=whole)

    def says(tokens: list[int]) -> bool:
        return pattern.search(folded(str(tokenizer.decode(tokens, skip_special_tokens=True)))) is not None

    if not says(said):
        return None
    end = next(end for end in range(1, len(said) + 1) if says(said[:end]))
    start = next(start for start in reversed(range(end)) if says(said[start:end]))
    return Answer([*prompt, *said[:end]], len(prompt) + start)
