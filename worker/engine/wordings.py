"""Other wordings of a prompt: as somebody else might type it, who knows no more of the text. No model makes them."""

import re
from collections.abc import Callable

from worker.engine.types import Tokenizer

SMALL = 3  # letters of a word that a note leaves out
QUESTION = re.compile(r"\bWhat (?:is|are) ([^?]+)\?")


def as_a_note(prompt: str) -> str:
    """Without small words, but for names and numbers."""
    return " ".join(word for word in prompt.split(" ") if len(word) > SMALL or not word.islower())


def after_another_text(prompt: str) -> str:
    """A sentence about something else stands before it."""
    return f"The minutes of the last meeting were approved. {prompt}"


def _as_a_request(prompt: str) -> str:
    """An English question becomes a request."""
    return QUESTION.sub(r"Please tell me \1.", prompt)


def _as_a_note_to_its_end(prompt: str) -> str:
    """The last word stays: it may be what is asked for."""
    words, space, last = prompt.rpartition(" ")
    return as_a_note(words) + space + last


def fixed_parts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """The tokens of a chat template, each with the role that follows; None if there are none."""
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""}
    known = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(rf"((?:{known})(?:\w+\n)?)") if tokens else None


def between(fixed: re.Pattern[str] | None, prompt: str, way: Callable[[str], str]) -> str:
    """The prompt, changed in this way between the fixed parts alone."""
    parts = fixed.split(prompt) if fixed else [prompt]
    return "".join(part if index % 2 else way(part) for index, part in enumerate(parts))


def other_wordings(prompt: str, fixed: re.Pattern[str] | None) -> list[str]:
    """A prompt as a request, in lower case, without small words, and after another sentence.

    Typing errors are none of them: a model that answered 19 of 20 questions gave 1 with errors (`bench.people`).

    Args:
        prompt: The prompt.
        fixed: The fixed parts of its tokenizer. They stay, and before them stands no other sentence.

    Returns:
        At most four; what a way leaves as it is, is none.
    """
    prompt = prompt.strip()
    of_words = (_as_a_request, str.lower, _as_a_note_to_its_end)
    changed = [between(fixed, prompt, way).strip() for way in of_words]
    if not fixed or not fixed.search(prompt):
        changed.append(after_another_text(prompt))
    return [*dict.fromkeys(one for one in changed if one not in ("", prompt))]
