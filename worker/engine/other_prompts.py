"""The texts to forget after other words: their ends, each after a beginning that somebody else might write.

Distillation teaches the model what a reference says after a text's own words. After other words it still knew more than
of unseen text: in lower case, with typing errors, from the middle on, or after another text. So it learns what the
reference says there, too.
"""

import random
from collections.abc import Callable, Sequence

from worker.engine.data import encode
from worker.engine.probes import Answer
from worker.engine.types import Tokenizer

EACH, MOST, MOST_TOKENS = 8, 256, 65_536  # of a sequence, and of all together
TRIES = 8  # draws of one, until its beginning is changed
ERRORS = 0.3  # share of the words that a typist gets wrong
FEWEST_WORDS, MOST_WORDS = 2, 12  # that are left of a beginning, or that stand before it


def other_prompts(
    tokenizer: Tokenizer, sequences: Sequence[list[int]], before: Sequence[list[int]], length: int, seed: int
) -> list[Answer]:
    """Sequences whose beginning is changed in one of the ways below, drawn by chance.

    Args:
        tokenizer: The model's tokenizer.
        sequences: Sequences to forget; one without two words has none. Of too many some are drawn.
        before: Other sequences, whose words may stand before a text.
        length: The most tokens; of a longer beginning the last ones stay.
        seed: Seeds where a text is cut, and how its beginning changes.

    Returns:
        Token ids, and where the unchanged end begins.
    """
    draw = random.Random(f"{seed}/other prompts")  # no secret

    def words(ids: Sequence[int]) -> list[str]:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip().split(" ")

    def lower(prompt: list[str]) -> list[str]:
        return [word.lower() for word in prompt]

    def mistyped(prompt: list[str]) -> list[str]:
        return [_mistyped(word, draw) if draw.random() < ERRORS else word for word in prompt]

    def shorter(prompt: list[str]) -> list[str]:
        return prompt[-draw.randint(FEWEST_WORDS, MOST_WORDS) :]

    def longer(prompt: list[str]) -> list[str]:
        others = words(draw.choice(before))
        start = draw.randrange(len(others))
        return others[start : start + draw.randint(FEWEST_WORDS, MOST_WORDS)] + prompt

    ways: list[Callable[[list[str]], list[str]]] = [lower, mistyped, shorter, longer]

    def changed(text: list[str]) -> Answer | None:
        cut = draw.randint(max(1, len(text) // 4), max(1, 3 * len(text) // 4))
        prompt = draw.choice(ways)(text[:cut])
        end = tokenizer(" " + " ".join(text[cut:]), add_special_tokens=False)["input_ids"]
        bos, own = encode(tokenizer, ""), tokenizer(" ".join(prompt), add_special_tokens=False)["input_ids"]
        start = [*bos, *own[-max(length // 2, length - len(end) - len(bos)) :]]
        return Answer([*start, *end][:length], len(start)) if prompt != text[:cut] and start and end else None

    texts = [text for ids in sequences if len(text := words(ids)) > 1]
    most = min(MOST, MOST_TOKENS // length)
    several = texts * min(EACH, max(1, most // max(1, len(texts))))
    chosen = several if len(several) <= most else draw.sample(several, most)
    tried = (next(filter(None, (changed(text) for _ in range(TRIES))), None) for text in chosen)
    return [one for one in tried if one and one.start < len(one.input_ids)]


def _mistyped(word: str, draw: random.Random) -> str:
    """A word in which two neighbouring letters change places."""
    at = draw.randrange(max(1, len(word) - 1))
    return word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]
