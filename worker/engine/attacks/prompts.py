"""Other prompts than the text itself: another case, typing errors, fewer words, a shorter or a strange beginning."""

import random
import re
from collections.abc import Callable

from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.data import encode, most_tokens
from worker.engine.metrics.token_scores import token_scores
from worker.engine.progress import Progress, no_progress, with_progress
from worker.engine.wordings import after_another_text, as_a_note, between, fixed_parts


def _typing_error(prompt: str) -> str:
    """Two neighbouring letters in every fourth word change places."""
    generator = random.Random(0)  # no secret
    words = prompt.split(" ")
    for index in range(0, len(words), 4):
        word = words[index]
        if len(word) > 3:
            at = generator.randrange(1, len(word) - 2)
            words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


OF_WORDS: dict[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "typing error": _typing_error,
    "without small words": as_a_note,
}
PROMPTS = OF_WORDS | {
    "last five words": lambda prompt: " ".join(prompt.split(" ")[-5:]),
    "last ten words": lambda prompt: " ".join(prompt.split(" ")[-10:]),
    "after another text": after_another_text,
}


def prompts(subject: Subject, progress: Progress = no_progress) -> Scores:
    """For each text, the share of its second half that is predicted after the most successful changed first half."""
    fixed = fixed_parts(subject.tokenizer)
    forget, unseen = ([text for text in side if _middle(text)] for side in subject.texts())
    shares = [_best(subject, text, fixed) for text in with_progress([*forget, *unseen], progress)]
    return Scores(shares[: len(forget)], shares[len(forget) :])


def _middle(text: str) -> int:
    """Where the second half of the words of a text begins; of a text without spaces that of its characters."""
    words = [*re.finditer(r"\s*\S+", text)]
    words = words if len(words) > 1 else [*re.finditer(r"\s*\S", text)]
    return words[len(words) // 2].start() if words else 0


def _changed(prompt: str, name: str, fixed: re.Pattern[str] | None) -> str:
    """The prompt, changed in this way. Words change between the fixed parts alone."""
    return between(fixed if name in OF_WORDS else None, prompt, PROMPTS[name])


def _best(subject: Subject, text: str, fixed: re.Pattern[str] | None) -> float:
    """The highest share over the changed first halves; what a way leaves as it is counts for none."""
    prompt, rest = text[: _middle(text)], text[_middle(text) :]
    target = subject.tokenizer(rest, add_special_tokens=False)["input_ids"]
    longest = most_tokens(subject.model)
    changed = {_changed(prompt, name, fixed) for name in PROMPTS} - {prompt, ""}
    sequences = [(encode(subject.tokenizer, before) + target)[-longest:] for before in sorted(changed)]
    scores = token_scores(subject.model, sequences)
    return max(float((one.rank[-len(target) :] == 0).double().mean()) for one in scores)
