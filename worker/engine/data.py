"""Texts to token windows, so that no token is left out, and batches of them.

**The rule.** A text becomes ids with BOS first where the tokenizer has one. Up to `sequence_length` L tokens
it is one sequence, however short. A longer text is cut into windows of exactly L tokens; they advance by
L - 1, so that the first token of a window (BOS, or the last token of the window before) is only context and
every other token of the text is a label x_t in some window. The last window is moved back to end with the
text instead of being short. The very first token of a text without BOS is predicted by nothing and measured
nowhere. In METHOD's terms each window is one sequence x of length T with t = 1..T-1.

b: batch, s: sequence
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.engine.errors import TooShort

IGNORE_INDEX = -100
PART = 40  # characters from which on a text inside a forget text is left out, too


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` with BOS first where the tokenizer has one, and no other special token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


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


def text_windows(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    """The windows of one text.

    Args:
        tokenizer: The model's tokenizer.
        text: Any text.
        length: Tokens a window holds, BOS included.

    Returns:
        One list of token ids a window, in text order.

    Raises:
        TooShort: The text has no token that the model predicts from another one.
    """
    ids = encode(tokenizer, text)
    if len(ids) < 2:
        raise TooShort("the text has fewer than two tokens, so the model predicts none of it")
    return windows(ids, length, bos=tokenizer.bos_token_id is not None)


def first_windows(tokenizer: Any, texts: Iterable[str], length: int, count: int) -> list[list[int]]:
    """The first window of each text that has one, `count` at most; long enough to be a sequence."""
    found: list[list[int]] = []
    for text in texts:
        ids = encode(tokenizer, text)[:length]
        if len(ids) >= 2:
            found.append(ids)
        if len(found) == count:
            break
    return found


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


def chunks(sequences: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Consecutive slices of `sequences`, `size` at most."""
    for start in range(0, len(sequences), size):
        yield list(sequences[start : start + size])


def normalised(text: str) -> str:
    """Case and white space folded, for finding a text inside another."""
    return " ".join(text.casefold().split())


def without_forget_text(texts: Sequence[str], forget_texts: Sequence[str]) -> tuple[list[str], int]:
    """Leave out every text that contains a forget text, or that is a part of one.

    Training on such a text teaches what is to be forgotten; as held-out text it would loosen the thresholds.

    Args:
        texts: Retain or held-out texts.
        forget_texts: What is to be forgotten.

    Returns:
        The texts that stay, in order, and how many were left out.
    """
    needles = [re.escape(needle) for needle in map(normalised, forget_texts) if needle]
    if not needles:
        return list(texts), 0
    found = re.compile(rf"(?<!\w)(?:{'|'.join(needles)})(?!\w)")  # whole words: "John" is not in "Johnson"
    whole = [normalised(text) for text in forget_texts]
    kept = []
    for text in texts:
        folded = normalised(text)
        part = len(folded) >= PART and any(folded in forget for forget in whole)
        if not part and not found.search(folded):
            kept.append(text)
    return kept, len(texts) - len(kept)
