"""The parent's own samples: retain text that nobody has to provide, in whatever the model can say.

A chat model also makes up conversations: first a message, then its answer. Where there are probes, some samples begin
as they do: "The telephone number of" may go on with somebody else, whom the model must keep.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from worker.engine.data import chunks
from worker.engine.generate import continuations
from worker.engine.options import Options
from worker.engine.prepare import Prepared, RetainSampler
from worker.engine.probes import as_message
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.saying import folded
from worker.engine.types import CausalLM, Tokenizer

BATCH, USUAL_LENGTH = 64, 200  # samples at once, of that many tokens
PLACEHOLDER = "##message##"
PER_RETAIN = 2  # in a batch: nobody names most of what a model knows
GRAM = 8  # tokens in a row
MOST_SHARED = 0.2  # share of a sample's runs that may be runs of texts to forget alone
MOST_OF_A_TEXT = 0.5  # share of such a text's runs that a sample may say
FEWEST_LETTERS = 4  # letters and digits; a shorter secret is said by chance


def own_samples(
    model: CausalLM, tokenizer: Tokenizer, data: Prepared, options: Options, progress: Progress = no_progress
) -> list[list[int]]:
    """Texts that the parent says by itself, without those that say what this run or an earlier one has to forget.

    Args:
        model: The parent.
        tokenizer: Its tokenizer. Where it has no BOS, samples begin as retain sequences do.
        data: The sets of the run.
        options: How many samples are drawn, how long they are, and the seed.
        progress: Called with the fraction done, 0..1.

    Returns:
        Token ids of the samples that stay.
    """
    if not options.samples_drawn:
        return []
    texts, messages, after = _openings(tokenizer, data, options)
    torch.manual_seed(options.seed)
    share = len(texts) / options.samples_drawn
    samples = _continued(model, texts, options.sequence_length, options, partial_progress(progress, 0.0, share))
    asked = [ids + after for ids in _continued(model, messages, options.sequence_length // 2, options)]
    samples += _continued(model, asked, options.sequence_length, options, partial_progress(progress, share, 1 - share))
    forgotten = _Forgotten((data.forget + data.earlier).sequences, [*data.all_retain, *data.threshold_sequences])
    secrets = _Secrets(data)
    kept = [ids for ids in samples if len(ids) >= GRAM and not forgotten.said_in(ids)]
    return [ids for ids in kept if not secrets.said_in(str(tokenizer.decode(ids, skip_special_tokens=True)))]


def _openings(
    tokenizer: Tokenizer, data: Prepared, options: Options
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """How samples begin: those that are texts, and those that are messages; and what stands between message and answer.

    The kinds take turns.
    """
    bos, order = tokenizer.bos_token_id, random.Random(f"{options.seed}/openings")
    nothing = [ids[:1] for ids in data.retain] if bos is None else [[bos]]
    parts = (as_message(tokenizer, PLACEHOLDER) or "").split(PLACEHOLDER)
    before, after = ([_ids(tokenizer, part) for part in parts]) if len(parts) == 2 else ([], [])
    if len(before) + len(after) > options.sequence_length // 4:
        after = []  # no room for a conversation

    def begun() -> list[int]:
        """The beginning of a probe's prompt."""
        prompt = _ids(tokenizer, order.choice(data.probes).prompt)[: max(2, options.sequence_length // 4)]
        return prompt[: order.randrange(1, max(2, len(prompt)))]

    kinds: list[Callable[[int], tuple[list[int], bool]]] = [lambda turn: (nothing[turn % len(nothing)], False)]
    if after:
        kinds.append(lambda _: (before, True))
    if data.probes:
        kinds.append(lambda _: (([] if bos is None else [bos]) + begun(), False))
    if after and data.probes:
        kinds.append(lambda _: (before + begun(), True))
    drawn = [kinds[i % len(kinds)](i // len(kinds)) for i in range(options.samples_drawn)]
    texts, messages = ([ids for ids, is_message in drawn if is_message is kind] for kind in (False, True))
    return texts, messages, after


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a part of a text: no BOS, no end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _continued(
    model: CausalLM, openings: Sequence[list[int]], length: int, options: Options, progress: Progress = no_progress
) -> list[list[int]]:
    """The openings, each continued by one sample to so many tokens at most; those of one length at once."""
    alike: dict[int, list[list[int]]] = {}
    for ids in openings:
        alike.setdefault(len(ids), []).append(ids)
    fitting = max(1, min(BATCH, options.row_budget, BATCH * USUAL_LENGTH // options.sequence_length))
    samples: list[list[int]] = []
    for size, of_size in alike.items():
        for part in chunks(of_size, fitting):
            said = continuations(model, part, length - size, sample=True) if size < length else [[]] * len(part)
            samples += [ids + tokens for ids, tokens in zip(part, said, strict=True)]
            progress(len(samples) / len(openings))
    return samples


def kept_batch(retain: RetainSampler, samples: list[list[int]], size: int, order: random.Random) -> list[list[int]]:
    """Retain sequences, so many, and twice as many samples of the parent."""
    return retain.sample(size) + order.sample(samples, min(PER_RETAIN * size, len(samples)))


class _Forgotten:
    """The runs of tokens of texts to forget that stand in no other text: forms have many runs in common."""

    def __init__(self, sequences: Sequence[list[int]], others: Sequence[list[int]]) -> None:
        self._sizes = {min(GRAM, len(ids) - 1) for ids in sequences}
        elsewhere = {run for ids in others for run in self._runs(ids)}
        self._texts: dict[tuple[int, ...], list[int]] = {}
        for index, ids in enumerate(sequences):
            for run in set(_runs(ids[1:], min(GRAM, len(ids) - 1))) - elsewhere:
                self._texts.setdefault(run, []).append(index)
        self._totals = Counter(index for texts in self._texts.values() for index in texts)

    def said_in(self, ids: Sequence[int]) -> bool:
        """Whether a sample has many of these runs, or many of one text's."""
        said = [run for run in self._runs(ids) if run in self._texts]
        of_texts = Counter(index for run in set(said) for index in self._texts[run])
        most_of_one = any(count > MOST_OF_A_TEXT * self._totals[index] for index, count in of_texts.items())
        return most_of_one or len(said) > MOST_SHARED * (len(ids) - GRAM + 1)

    def _runs(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        return [run for size in self._sizes for run in _runs(ids, size)]


def _runs(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]


class _Secrets:
    """The prompts of probes, and their secrets that stand in no retain text. Letters and digits alone are compared."""

    def __init__(self, data: Prepared) -> None:
        retain = _letters(" ".join(data.retain_texts))
        secrets = {_letters(probe.secret) for probe in data.probes}
        prompts = {_letters(probe.prompt) for probe in data.probes}
        distinct = {letters for letters in secrets if letters not in retain} | prompts
        self._all = [letters for letters in distinct if len(letters) >= FEWEST_LETTERS]

    def said_in(self, text: str) -> bool:
        """Whether a text has one of them."""
        letters = _letters(text)
        return any(secret in letters for secret in self._all)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, folded(text)))
