"""Texts that differ from a text to forget in their numbers alone.

Distillation teaches the model what a reference says about one text. It would be less sure of what is near that text
than of unseen text. So it learns what the reference says about other numbers in the same place, too.
"""

import random
import re
from collections.abc import Sequence

from worker.engine.attacks.exposure import NUMBER, formats_of_numbers, shape
from worker.engine.data import encode
from worker.engine.types import Tokenizer

EACH, MOST = 8, 512  # variants of a sequence, and of all together


def number_variants(
    tokenizer: Tokenizer, sequences: Sequence[list[int]], unseen: Sequence[list[int]], seed: int
) -> list[list[int]]:
    """Sequences with other numbers of the same format.

    Args:
        tokenizer: The model's tokenizer.
        sequences: Sequences to forget; those without a number have no variant.
        unseen: Held-out sequences, which show the formats of numbers.
        seed: Seeds the digits.

    Returns:
        Token ids of at most MOST variants.
    """

    def decoded(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    draw = random.Random(seed)  # no secret
    formats = formats_of_numbers([number for ids in unseen for number in NUMBER.findall(decoded(ids))])

    def another(match: re.Match[str]) -> str:
        pattern = formats.get(shape(match.group()), re.sub(r"\d", "?", match.group()))
        return re.sub(r"\?", lambda _: draw.choice("0123456789"), pattern)

    with_number = [(text, len(ids)) for ids in sequences if NUMBER.search(text := decoded(ids))]
    each = min(EACH, max(1, MOST // max(1, len(with_number))))
    variants = [
        encode(tokenizer, NUMBER.sub(another, text))[:length] for _ in range(each) for text, length in with_number
    ]
    return variants[:MOST]
