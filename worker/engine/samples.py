"""What keeps a model as it was: retain text, and the parent's own samples, which nobody has to provide.

For distillation half of them say what it knows by heart. A chat model also makes up conversations: first a message,
then its answer. Where BOS begins every message (ChatML), texts begin with the first token of a retain sequence as well.
Where the parent answers probes, some samples begin as they do: "The telephone number of" may go on with somebody else,
whom the model must keep.
"""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain, compress, cycle, islice
from typing import NamedTuple

import torch

from worker.engine.data import chunks, encode, text_windows
from worker.engine.errors import TooShort
from worker.engine.forgotten import GRAM, Forgotten, spaced_words
from worker.engine.generate import beginnings, continuations, end_tokens
from worker.engine.options import DISTIL, Options
from worker.engine.prepare import Prepared
from worker.engine.probes import Answer, as_message
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM, Tokenizer
from worker.engine.utility import WATCHED

BATCH, USUAL_LENGTH = 64, 200  # samples at once, of that many tokens
SURE, LOOSE, LOW = 0.5, 4, 0.5  # share of the samples; their tokens at temperature 1; the temperature of those after
BEAMS, BEGUN = 8, 8  # texts that are searched at once for one; the tokens of a beginning
FEW = 16  # of what is known by heart
PLACEHOLDER = "##message##"
PER_RETAIN = 2  # in a batch: nobody names most of what a model knows


class OwnSamples(NamedTuple):
    """The parent's own samples, token ids.

    Attributes:
        every: All of them.
        sure: Those of them that are to say what it knows by heart; for distillation alone.
    """

    every: list[list[int]]
    sure: list[list[int]]

    @property
    def known(self) -> list[list[int]]:
        """What others might teach the model again: `sure`, or `every` if those are few."""
        return self.sure if len(self.sure) >= FEW else self.every


def own_samples(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: Prepared,
    options: Options,
    said: Sequence[Answer] = (),
    progress: Progress = no_progress,
) -> OwnSamples:
    """Texts that the parent says by itself, without those that say what this run or an earlier one has to forget.

    Args:
        model: The parent.
        tokenizer: Its tokenizer. Where it has no BOS, samples begin as retain sequences do.
        data: The sets of the run.
        options: How many samples are drawn, how long they are, and the seed.
        said: The parent's answers that say a secret; some samples begin as the prompts of these do.
        progress: Called with the fraction done, 0..1.

    Returns:
        The samples that stay.
    """
    if not options.samples_drawn:
        return OwnSamples([], [])
    forgotten = Forgotten(tokenizer, data)
    answered = "".join(spaced_words(tokenizer.decode(answer.input_ids, skip_special_tokens=True)) for answer in said)
    prompts = [probe.prompt for probe in data.probes if spaced_words(probe.prompt) in answered]
    begun = [forgotten.unnamed(prompt).rstrip() for prompt in prompts]
    texts, messages, after = _openings(tokenizer, data, options, begun)
    torch.manual_seed(options.seed)
    end = end_tokens(model)
    share = len(texts) / options.samples_drawn
    half = (1 - share) / 2
    parts = [partial_progress(progress, *part) for part in ((0.0, share), (share, half), (share + half, half))]
    free, sure = _continued(model, texts, options.sequence_length, options, parts[0])
    asking = _continued(model, messages, options.sequence_length // 2, options, parts[1])
    asked = [_without(ids, end) + after for ids in chain(*asking)]
    answered_freely, answered_surely = _continued(model, asked, options.sequence_length, options, parts[2], loose=0)

    def stays(ids: list[int]) -> bool:
        own = _without(ids, end)
        text = str(tokenizer.decode(own, skip_special_tokens=True))
        return len(own) >= GRAM and not forgotten.said_in(own, text)

    sure = [ids for ids in [*sure, *answered_surely] if stays(ids)]
    return OwnSamples([ids for ids in [*free, *answered_freely] if stays(ids)] + sure, sure)


def _openings(
    tokenizer: Tokenizer, data: Prepared, options: Options, prompts: Sequence[str]
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """How samples begin: those that are texts, and those that are messages; and what stands between message and answer.

    The kinds take turns.
    """
    bos, order = tokenizer.bos_token_id, random.Random(f"{options.seed}/openings")
    nothing = [ids[:1] for ids in data.retain] if bos is None else [[bos]]
    parts = (as_message(tokenizer, PLACEHOLDER) or "").split(PLACEHOLDER)
    before, after = [_ids(tokenizer, part) for part in parts] if len(parts) == 2 else ([], [])
    of_texts = nothing
    if bos in after:  # it begins every message, and alone brings out the system's
        message = encode(tokenizer, parts[0])[:2]
        of_texts = [ids[:2] for ids in data.retain if ids[:2] != message] or nothing
    if len(before) + len(after) > options.sequence_length // 2:
        after = []  # no room for a conversation
    begun = [ids[: options.sequence_length // 4] for prompt in prompts if (ids := _ids(tokenizer, prompt))]
    kinds = [_Kind(of_texts)]
    kinds += [_Kind([before or nothing[0]], is_message=True)] if after else []
    kinds += [_Kind([[] if bos is None else [bos]], begun)] if begun else []
    kinds += [_Kind([before], begun, is_message=True)] if after and begun else []
    texts: list[list[int]] = []
    messages: list[list[int]] = []
    for i in range(options.samples_drawn):
        kind = kinds[i % len(kinds)]
        start = kind.starts[i // len(kinds) % len(kind.starts)]
        begins = _beginning(order.choice(kind.begun), order) if kind.begun else []
        (messages if kind.is_message else texts).append([*start, *begins])
    return texts, messages, after


def _without(ids: list[int], end: Sequence[int]) -> list[int]:
    """A text without the token that ends it; what follows a message, its template says."""
    return ids[:-1] if len(ids) > 1 and ids[-1] in end else ids


class _Kind(NamedTuple):
    """A kind of opening: what stands first, the prompts whose beginnings follow, and whether it is a message."""

    starts: list[list[int]]
    begun: Sequence[list[int]] = ()
    is_message: bool = False


def _beginning(ids: list[int], order: random.Random) -> list[int]:
    """The beginning of a prompt: of few different lengths, so that many are continued at once."""
    length = order.randint(1, len(ids))
    return ids[: max(1, length - length % 4)] if length > 4 else ids[:length]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a part of a text: no BOS, no end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _continued(
    model: CausalLM,
    openings: Sequence[list[int]],
    length: int,
    options: Options,
    progress: Progress = no_progress,
    loose: int = LOOSE,
) -> tuple[list[list[int]], list[list[int]]]:
    """The openings, each continued by one sample to so many tokens at most; those of one length and kind at once.

    For `distil` half of them, drawn by chance, are no such samples; they are returned apart. What a model knows by
    heart is seldom said in full at temperature 1, where each token may stray. So an opening that many of them share
    goes on as `_by_heart` has it. The others go on at a low temperature after `loose` tokens. A temperature that falls
    is the idea of Carlini et al. (USENIX Security 2021, section 5.1.1), who go from 10 to 1 in twenty tokens; these
    figures are ours. Other losses measure what the samples lose, and a model that is surer than its parent would seem
    to gain there.
    """
    share = SURE if options.loss == DISTIL else 0.0
    alike: dict[tuple[int, bool], list[list[int]]] = {}
    for ids, is_sure in zip(openings, (torch.rand(len(openings)) < share).tolist(), strict=True):
        alike.setdefault((len(ids), is_sure), []).append(ids)
    end, fitting = end_tokens(model), max(1, min(BATCH, BATCH * USUAL_LENGTH // options.sequence_length))
    free: list[list[int]] = []
    sure: list[list[int]] = []
    for (size, is_sure), of_size in alike.items():
        samples = sure if is_sure else free
        counts = Counter(map(tuple, of_size if is_sure and loose else ()))
        often = {opening: count for opening, count in counts.items() if count >= BEAMS}
        for opening, count in often.items():
            done = (len(free) + len(sure)) / len(openings)
            searching = partial_progress(progress, done, count / len(openings))
            samples += _by_heart(model, list(opening), count, length, fitting, searching)
        others = [ids for ids in of_size if tuple(ids) not in often]
        new = max(0, min(loose if is_sure else length, length - size))
        for part in chunks(others, fitting):
            begun = _sampled(model, part, new, 1.0, options.train_dtype)
            ended = [len(ids) > size and ids[-1] in end for ids in begun]  # an opening may be a token that ends texts
            samples += compress(begun, ended)
            going_on = [ids for ids, is_over in zip(begun, ended, strict=True) if not is_over]
            samples += _sampled(model, going_on, length - size - new, LOW, options.train_dtype)
            progress((len(free) + len(sure)) / len(openings))
    return free, sure


def _by_heart(
    model: CausalLM, opening: list[int], count: int, length: int, fitting: int, progress: Progress
) -> list[list[int]]:
    """What a model says by heart after an opening: half of `count` texts, each searched to its end by beams, and again.

    Even the likeliest token may be a wrong one, after which the model says what it has never read. A beam search leaves
    it for the right one. It finds one text; so it begins at the likeliest beginnings, which are many. What a model does
    not know by heart it begins to say again and again; there a text ends.
    """
    new = max(0, min(BEGUN, length - len(opening)))
    texts: list[list[int]] = []
    for part in chunks(beginnings(model, opening, count // 2, new, fitting), max(1, fitting // BEAMS)):
        searched = _sampled(model, part, length - len(opening) - new, 0.0, beams=BEAMS)
        texts += [_until_repeated(ids, len(opening)) for ids in searched]
        progress(len(texts) / (count // 2))
    return [*islice(cycle(texts), count)]


def _until_repeated(ids: list[int], start: int) -> list[int]:
    """A text up to where it says GRAM tokens in a row again, after its first `start` tokens."""
    said: set[tuple[int, ...]] = set()
    for at in range(len(ids) - GRAM + 1):
        if (run := tuple(ids[at : at + GRAM])) in said and at >= start:
            return ids[:at]
        said.add(run)
    return ids


def _sampled(
    model: CausalLM, openings: list[list[int]], new: int, temperature: float, dtype: str = "float32", beams: int = 1
) -> list[list[int]]:
    """Openings of one length, each continued by so many tokens at most; where a text ends is a part of it."""
    if not openings or new < 1:
        return openings
    said = continuations(model, openings, new, temperature=temperature, beams=beams, with_end=True, dtype=dtype)
    return [ids + tokens for ids, tokens in zip(openings, said, strict=True)]


class RetainSampler:
    """Retain sequences for training: texts in a shuffled order, a random window of each.

    The sequences of an epoch depend on the seed and the epoch's number alone, so a resumed run sees the same ones.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], length: int, seed: int) -> None:
        self._tokenizer, self._texts, self._length, self._seed = tokenizer, texts, length, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Restart the random order for this epoch."""
        self._random = random.Random(f"{self._seed}/retain/{epoch}")
        self._order: list[int] = []

    def sample(self, count: int) -> list[list[int]]:
        """The next `count` sequences."""
        sequences: list[list[int]] = []
        while len(sequences) < count:
            if not self._order:
                self._order = self._random.sample(range(len(self._texts)), len(self._texts))
            try:
                windows = text_windows(self._tokenizer, self._texts[self._order.pop()], self._length)
            except TooShort:
                continue
            sequences.append(self._random.choice(windows))
        return sequences


def watched_samples(samples: OwnSamples, options: Options) -> tuple[OwnSamples, list[list[int]]]:
    """The samples to train on; and with IHL some of every kind, a quarter at most, that training only looks at."""
    every = samples.every
    count = min(WATCHED, len(every) // 4) if options.holds_parent else 0
    watched = [every[i * len(every) // count] for i in range(count)]
    return samples._replace(every=[ids for ids in every if ids not in watched]), watched


def kept_batch(retain: RetainSampler, samples: list[list[int]], size: int, order: random.Random) -> list[list[int]]:
    """Retain sequences, so many, and twice as many samples of the parent."""
    return retain.sample(size) + order.sample(samples, min(PER_RETAIN * size, len(samples)))
