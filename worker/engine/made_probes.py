"""The probes of a run: those that submitters gave, and those that the run makes of identifiers in records."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import TypeVar

from worker.engine.identifiers import NAME, all_identifiers
from worker.engine.probes import Probe, chats
from worker.engine.saying import Texts, folded, secret_pattern
from worker.engine.types import Tokenizer

MOST_GIVEN, MOST_MADE = 1024, 128  # probes given and made for this run
FEWEST_EARLIER, MOST_EARLIER = 8, 32  # asked of earlier requests: as many as of this run, within these bounds
WORDS_BEFORE, CHARACTERS_BEFORE = 12, 300  # that are a prompt
MOST_SEARCHED, MOST_LOOKED_AT = 400_000, 200  # characters of a record; identifiers in it
OF_A_KIND = 3  # identifiers of a record
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
    theirs += made_probes(tokenizer, _in_turn(earlier, itemgetter(1), seed)[:most], kept, most, draw)
    theirs = _in_turn([*dict.fromkeys(theirs)], lambda probe: probe.request, seed)
    return [*dict.fromkeys(ours), *theirs[:most]]


def _in_turn(items: Sequence[Item], request: Callable[[Item], int], seed: str) -> list[Item]:
    """The first item of each request, in a random order, then the second ones, and so on."""
    turns, placed = Counter[int](), []
    for place, item in enumerate(items):
        turns[request(item)] += 1
        placed.append((turns[request(item)], _lot(seed, request(item)), place))
    return [items[place] for *_, place in sorted(placed)]


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
    texts: dict[int, list[str]] = {}
    for text, request in records:
        if any(all_identifiers(text[:MOST_SEARCHED])):
            texts.setdefault(request, []).append(text[:MOST_SEARCHED])
    requests = _at_most(most, [*texts], draw)
    fair = max(1, most // max(1, len(requests)))
    return [probe for one in requests for probe in _of_request(tokenizer, texts[one], kept, one, fair, draw)]


def _of_request(
    tokenizer: Tokenizer, texts: Sequence[str], kept: Texts, request: int, most: int, draw: random.Random
) -> list[Probe]:
    """Probes of some texts of a request, of as many as are needed."""
    made: dict[Probe, None] = {}
    for text in draw.sample(texts, len(texts)):
        made |= dict.fromkeys(_of_text(tokenizer, text, kept, request))
        if len(made) >= most:
            break
    return _at_most(most, [*made], draw)


def _of_text(tokenizer: Tokenizer, text: str, kept: Texts, request: int) -> Iterator[Probe]:
    """For the first identifiers of each kind the words before them; for the very first one questions, too.

    It belongs to the name nearest before it, or to the first name of the text: each has a question. What says the
    identifier itself is no prompt: a model that never saw it would repeat it.
    """
    names = list(NAME.finditer(text))
    values: dict[str, set[str]] = {}
    for one in islice(all_identifiers(text), MOST_LOOKED_AT):
        alike = values.setdefault(one.kind, set())
        if len(alike) == OF_A_KIND or one.value in alike or kept.say(one.value):
            continue
        says, prompts = secret_pattern(one.value), []
        if not alike:
            before = [name for name in names if name.end() <= one.start]
            for name in (*before[-1:], *names[:1]):
                question = f"What is {name.group()}'s {one.kind}?"
                prompts.append(question if chats(tokenizer) else f"Question: {question}\nAnswer:")
        prompts.append(_last_words(text[: one.start]))
        yield from (
            Probe(prompt, one.value, request) for prompt in prompts if prompt and not says.search(folded(prompt))
        )
        alike.add(one.value)


def _last_words(text: str) -> str:
    """The last words of a text as they stand there, with its own spaces and lines between them."""
    text = text[-CHARACTERS_BEFORE:]
    words = [*re.finditer(r"\S+", text)][-WORDS_BEFORE:]
    return text[words[0].start() : words[-1].end()] if words else ""
