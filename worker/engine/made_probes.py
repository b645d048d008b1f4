"""The probes of a run: those that submitters gave, and those that the run makes of identifiers in records."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from worker.engine.identifiers import NAME, identifiers
from worker.engine.probes import Probe, chats
from worker.engine.saying import Texts
from worker.engine.types import Tokenizer

MOST_GIVEN, MOST_MADE = 1024, 128  # probes given and made for this run
FEWEST_EARLIER, MOST_EARLIER = 8, 32  # asked of earlier requests: as many as of this run, within these bounds
WORDS_BEFORE, CHARACTERS_BEFORE, MOST_SEARCHED = 12, 300, 20_000  # that are a prompt; characters of a record
Item = TypeVar("Item")
Records = Sequence[tuple[str, int]]  # text, index of its request


def all_probes(
    tokenizer: Tokenizer,
    given: Sequence[Probe],
    own: Records,
    earlier: Records,
    reference_texts: Sequence[str],
    seed: str,
) -> list[Probe]:
    """The probes of a run: the given ones and those made of its records, and some of those of earlier requests.

    Args:
        tokenizer: The model's tokenizer.
        given: Those that submitters gave, each once.
        own: Records of this run, each with the index of its request.
        earlier: Records of earlier requests.
        reference_texts: Retain and held-out texts: what stands in them makes no probe, because it is to stay known.
        seed: Draws those of earlier requests; whether one is drawn hardly depends on what else there is.

    Returns:
        The probes, those of this run first.
    """
    draw, requests = random.Random(seed), {request for _, request in own}
    kept = Texts(reference_texts)
    ours = _at_most(MOST_GIVEN, [probe for probe in given if probe.request in requests], draw)
    ours += made_probes(tokenizer, own, kept, MOST_MADE, draw)
    most = min(MOST_EARLIER, max(FEWEST_EARLIER, len(ours)))
    theirs = [probe for probe in given if probe.request not in requests]
    drawn = sorted(earlier, key=lambda record: _lot(seed, record[1]))[:most]
    theirs += made_probes(tokenizer, drawn, kept, most, draw)
    theirs = sorted(dict.fromkeys(theirs), key=lambda probe: _lot(seed, probe.request))
    return [*dict.fromkeys(ours), *theirs[:most]]


def _lot(seed: str, request: int) -> bytes:
    """Requests in this order are in a random one."""
    return hashlib.sha256(f"{seed}/{request}".encode()).digest()


def _at_most(count: int, items: Sequence[Item], draw: random.Random) -> list[Item]:
    """All items, or so many random ones."""
    return list(items) if len(items) <= count else draw.sample(items, count)


def made_probes(tokenizer: Tokenizer, records: Records, kept: Texts, most: int, draw: random.Random) -> list[Probe]:
    """Probes for the first identifiers of each kind in each record, of each request as many.

    Args:
        tokenizer: The model's tokenizer. Where it has a chat template, questions are plain; else they have a form
            that a base model continues.
        records: Texts, each with the index of its request.
        kept: An identifier that stands in one of them makes no probe.
        most: How many probes. If there are more requests, some are drawn.
        draw: Draws them.

    Returns:
        The probes.
    """
    made: dict[int, list[Probe]] = {}
    for text, request in records:
        of_text = _of_text(tokenizer, text[:MOST_SEARCHED], kept, request)
        made[request] = [*dict.fromkeys([*made.get(request, []), *of_text])]
    of_requests = _at_most(most, [of_request for of_request in made.values() if of_request], draw)
    fair = max(1, most // max(1, len(of_requests)))
    return [probe for of_request in of_requests for probe in _at_most(fair, of_request, draw)]


def _of_text(tokenizer: Tokenizer, text: str, kept: Texts, request: int) -> list[Probe]:
    """For the first identifier of each kind a question; the words before each identifier; then a second question.

    It belongs to the name nearest before it, or to the first name of the text: each has a question.
    """
    names = list(NAME.finditer(text))
    questions, prompts, seconds = list[Probe](), list[Probe](), list[Probe]()
    kinds = set[str]()
    for one in identifiers(text):
        if kept.say(one.value):
            continue
        if words := " ".join(text[: one.start][-CHARACTERS_BEFORE:].split()[-WORDS_BEFORE:]):
            prompts.append(Probe(words, one.value, request))
        if one.kind in kinds:
            continue
        kinds.add(one.kind)
        before = [name for name in names if name.end() <= one.start]
        forms = [f"What is {name.group()}'s {one.kind}?" for name in (*before[-1:], *names[:1])]
        if not chats(tokenizer):
            forms = [f"Question: {form}\nAnswer:" for form in forms]
        questions += [Probe(form, one.value, request) for form in forms[:1]]
        seconds += [Probe(form, one.value, request) for form in forms[1:]]
    return [*questions, *prompts, *seconds]
