"""Other prompts than the text itself: another case, typing errors, fewer words, a shorter or a strange beginning."""

import random
import re
from collections.abc import Callable

from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.data import encode, most_tokens
from worker.engine.metrics.token_scores import token_scores
from worker.engine.progress import Progress, no_progress, with_progress
from worker.engine.types import Tokenizer

SMALL = 3  # letters of a word that a note leaves out


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


def _as_a_note(prompt: str) -> str:
    """Without small words, but for names and numbers."""
    return " ".join(word for word in prompt.split(" ") if len(word) > SMALL or not word.islower())


PROMPTS: dict[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "typing error": _typing_error,
    "without small words": _as_a_note,
    "last five words": lambda prompt: " ".join(prompt.split(" ")[-5:]),
    "last ten words": lambda prompt: " ".join(prompt.split(" ")[-10:]),
    "after another text": lambda prompt: "The minutes of the last meeting were approved. " + prompt,
}
OF_WORDS = ("lower case", "typing error", "without small words")


def prompts(subject: Subject, progress: Progress = no_progress) -> Scores:
    """For each text, the share of its second half that is predicted after the most successful changed first half."""
    fixed = _fixed_parts(subject.tokenizer)
    forget, unseen = ([text for text in side if " " in text.strip()] for side in subject.texts())
    shares = [_best(subject, text, fixed) for text in with_progress([*forget, *unseen], progress)]
    return Scores(shares[: len(forget)], shares[len(forget) :])


def _fixed_parts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """The tokens of a chat template, each with the role that follows; None if there are none."""
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""}
    known = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(rf"((?:{known})(?:\w+\n)?)") if tokens else None


def _changed(prompt: str, name: str, fixed: re.Pattern[str] | None) -> str:
    """The prompt, changed in this way. Words change between the fixed parts alone."""
    if name not in OF_WORDS or not fixed:
        return PROMPTS[name](prompt)
    parts = fixed.split(prompt)
    return "".join(part if index % 2 else PROMPTS[name](part) for index, part in enumerate(parts))


def _best(subject: Subject, text: str, fixed: re.Pattern[str] | None) -> float:
    """The highest share over the changed first halves; what a way leaves as it is counts for none."""
    words = text.split(" ")
    middle = max(1, len(words) // 2)
    prompt, rest = " ".join(words[:middle]), " " + " ".join(words[middle:])
    target = subject.tokenizer(rest, add_special_tokens=False)["input_ids"]
    longest = most_tokens(subject.model)
    changed = {_changed(prompt, name, fixed) for name in PROMPTS} - {prompt, ""}
    sequences = [(encode(subject.tokenizer, before) + target)[-longest:] for before in sorted(changed)]
    scores = token_scores(subject.model, sequences)
    return max(float((one.rank[-len(target) :] == 0).double().mean()) for one in scores)
