"""Cuts texts into token windows that miss no token, and puts sequences into batches.

**The rule.** A text becomes ids, with BOS first if the tokenizer has one. A text of at most `sequence_length` L tokens
is one sequence, however short. A longer text is cut into windows of exactly L tokens. They advance by L - 1, so that
the first token of a window (BOS, or the last token of the window before) is only context and every other token of the
text is a label x_t in some window. The last window is moved back to end with the text instead of being short. Nothing
predicts the very first token of a text without BOS, so it is never measured. In METHOD's terms each window is one
sequence x of length T with t = 1..T-1.

b: batch, s: sequence
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar
from zlib import crc32

import torch
from torch import Tensor

from worker.engine.errors import TooShort
from worker.engine.types import CausalLM, Tokenizer

Item = TypeVar("Item")

IGNORE_INDEX = -100
FEWEST = 8  # neighbours, however unlike
MIN_PART = 40  # characters: a text of this length or more is left out if a forget text contains it
MOST_RETAIN = 1024  # retain texts that are compared with the forget set, or that a reference is trained on


def most_tokens(model: CausalLM) -> int:
    """The most tokens that a model takes, as its configuration says."""
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    return longest or 2**31


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of `text` with BOS first if the tokenizer has one, and no other special token is added.

    A conversation in a chat template may begin with BOS by itself. It stands there once, as where the model is asked.
    """
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each of at least one text, in one call of the tokenizer."""
    rows: list[list[int]] = tokenizer([*texts], add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return rows if bos is None else [ids if ids[:1] == [bos] else [bos, *ids] for ids in rows]


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a sequence, as `encode` takes it: with a chat template's tokens, without BOS at its beginning."""
    return str(tokenizer.decode(ids[1:] if [*ids[:1]] == [tokenizer.bos_token_id] else ids))


def windows(ids: Sequence[int], length: int, *, bos: bool) -> list[list[int]]:
    """Cut `ids` into windows of at most `length` tokens by the rule above.

    Args:
        ids: Token ids of one text, BOS first if `bos`.
        length: Tokens a window holds, at least 2, BOS included.
        bos: Whether `ids` starts with BOS; then every window starts with it too.

    Returns:
        Windows in text order; a single one if the text is short.
    """
    if len(ids) <= length:
        return [list(ids)]
    head, body = (list(ids[:1]), list(ids[1:])) if bos else ([], list(ids))
    size = length - len(head)
    starts = [*range(0, len(body) - size, length - 1), len(body) - size]
    return [head + body[start : start + size] for start in starts]


def text_windows(tokenizer: Tokenizer, text: str, length: int) -> list[list[int]]:
    """The windows of one text.

    Args:
        tokenizer: The model's tokenizer.
        text: Any text.
        length: Tokens a window holds, BOS included.

    Returns:
        The token ids of each window, in text order.

    Raises:
        TooShort: The text has no token that the model predicts from another one.
    """
    ids = encode(tokenizer, text)
    if len(ids) < 2:
        raise TooShort("the text has fewer than two tokens, so the model predicts none of it")
    return windows(ids, length, bos=tokenizer.bos_token_id is not None)


def first_windows(tokenizer: Tokenizer, texts: Iterable[str], length: int, count: int) -> list[list[int]]:
    """The first window of each text, `count` at most; a text of fewer than two tokens has none."""
    return windows_at(tokenizer, texts, length, count, [0])


def windows_at(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, count: int, places: Sequence[int]
) -> list[list[int]]:
    """A window of each text, `count` at most, at one of these places in the text, always the same one.

    A text is less easy to guess in its middle than at its beginning, where every letter says the same.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts; one of fewer than two tokens has no window.
        length: Tokens a window holds, BOS included.
        count: How many windows at most.
        places: Indices of windows. A text with fewer windows gives its last one.

    Returns:
        The token ids of each window.
    """

    def window(text: str) -> list[int]:
        parts = windows(encode(tokenizer, text), length, bos=tokenizer.bos_token_id is not None)
        return parts[min(places[crc32(text.encode()) % len(places)], len(parts) - 1)]

    return [*islice((ids for ids in map(window, texts) if len(ids) >= 2), count)]


def spread(texts: Sequence[str], most: int) -> list[str]:
    """All texts of a file, or so many from the whole of it: a file may be sorted.

    They are the same ones each time. Where a text is left out, one other takes its place. Copies come last.
    """
    copies, placed = Counter[str](), []
    for index, text in enumerate(texts):
        copies[text] += 1
        placed.append((copies[text], crc32(text.encode()), index))
    return [texts[index] for index in sorted(index for *_, index in sorted(placed)[:most])]


def pad_batch(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels` (IGNORE_INDEX on padding), each [b, s]."""
    width = max(len(ids) for ids in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = labels[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask, labels


def chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive slices of `items`, `size` at most."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def batches(
    rows: Sequence[Item],
    size: Callable[[Item], tuple[int, int]],
    tokens: int,
    most: float = math.inf,
    longest: float = math.inf,
) -> Iterator[list[Item]]:
    """Consecutive slices of rows that are computed at once; each has as many as fit, and one at least.

    Args:
        rows: Prompts with their continuations.
        size: How many tokens the prompt of a row has, and its continuation. Rows at once are as wide as the longest
            prompt and the longest continuation together, which may be of different rows.
        tokens: The most tokens of all rows of a batch, padding included.
        most: The most rows of a batch.
        longest: The most tokens of one of them, padding included.

    Yields:
        list[Item]: The rows of the next batch, in order.
    """
    batch, prompt, new = list[Item](), 0, 0
    for row, (of_prompt, of_new) in zip(rows, map(size, rows), strict=True):
        prompt, new = max(prompt, of_prompt), max(new, of_new)
        if batch and (len(batch) == most or (len(batch) + 1) * (prompt + new) > tokens or prompt + new > longest):
            yield batch
            batch, prompt, new = [], of_prompt, of_new
        batch.append(row)
    if batch:
        yield batch


def normalised(text: str) -> str:
    """The text with case and white space folded, so that one text can be searched for in another."""
    return " ".join(text.casefold().split())


def without_forget_text(texts: Sequence[str], forget_texts: Sequence[str]) -> tuple[list[str], int]:
    """Leave out every text that contains a forget text or is a part of one.

    Retain text of this kind would teach what is to be forgotten; held-out text of this kind would loosen the
    thresholds.

    Args:
        texts: Retain or held-out texts.
        forget_texts: Texts to forget.

    Returns:
        The texts that stay, in order, and how many were left out.
    """
    folded_forget_texts = [folded for text in forget_texts if (folded := normalised(text))]
    kept = []
    for text in texts:
        folded = normalised(text)
        is_part = len(folded) >= MIN_PART and any(folded in forget for forget in folded_forget_texts)
        if not is_part and not any(_has_words(folded, forget) for forget in folded_forget_texts):
            kept.append(text)
    return kept, len(texts) - len(kept)


def _has_words(text: str, words: str) -> bool:
    """Whether these words stand in a text, as whole words: "John" is not in "Johnson"."""
    place = text.find(words)
    while place >= 0:
        around = text[place - 1 : place] + text[place + len(words) : place + len(words) + 1]
        if not any(character.isalnum() or character == "_" for character in around):
            return True
        place = text.find(words, place + 1)
    return False


def nearest(
    file: Sequence[list[int]],
    forget: Sequence[list[int]],
    count: int,
    leave_out: Callable[[list[int]], bool] = lambda _: False,
) -> list[list[int]]:
    """The sequences that are most like one of these, by the Jaccard similarity of their tokens; the likest first.

    Beside ten conversations, ordinary text would hide what these lose. So those less than half as similar as the first
    are left out, but for the first FEWEST: what few short texts lose is a matter of chance.

    Args:
        file: The sequences to choose from.
        forget: Sequences to forget, or probes with their secrets. Without any, nothing is like them.
        count: How many are chosen at most.
        leave_out: Whether a sequence is none to keep.

    Returns:
        The chosen sequences.
    """
    if not forget:
        return []
    sets = [set(ids) for ids in forget]

    def similarity(ids: list[int]) -> float:
        own = set(ids)
        return max(len(own & other) / len(own | other) for other in sets)

    pairs = sorted(((similarity(ids), ids) for ids in file), key=lambda pair: -pair[0])
    likest = list(islice((pair for pair in pairs if not leave_out(pair[1])), count))
    return [ids for place, (value, ids) in enumerate(likest) if place < FEWEST or 2 * value >= likest[0][0]]
