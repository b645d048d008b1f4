"""Exposure of addresses. There are no random ones, so a person's ranks among those of other people, in unseen texts."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from worker.engine.attacks.exposure import CANDIDATES, Others, Secret, compared, secrets_in
from worker.engine.attacks.scores import Scores
from worker.engine.attacks.subject import Subject
from worker.engine.identifiers import EMAIL_ADDRESS, HOME_ADDRESS, NAME, all_identifiers
from worker.engine.other_digits import MIN_ALIKE
from worker.engine.progress import Progress, no_progress
from worker.engine.saying import folded

SHORTEST_NAME = 3  # letters: a shorter one is a part of many words


def exposure_addresses(subject: Subject, progress: Progress = no_progress) -> Scores:
    """For each request with a home address, the share of those in unseen texts that are less likely there.

    An address that stands in a text of the other side too, or in retain text that is measured, is no secret of one
    person. One with which a window ends may be cut. Neither is ranked, nor is one whose form (number first, or street
    first) few unseen texts show. The others are ranked once.
    """
    return _exposure(subject, HOME_ADDRESS, _other_homes, progress)


def exposure_emails(subject: Subject, progress: Progress = no_progress) -> Scores:
    """The same for e-mail addresses, where others' are given this person's name.

    Most are made of a name that stands before them, so that a model which never saw one prefers it to all others: where
    Ann Lee is ann.lee7@post.example, Bo Ray might be bo.ray7@post.example.
    """
    return _exposure(subject, EMAIL_ADDRESS, _other_emails, progress)


def _exposure(subject: Subject, kind: str, others: Callable[[Sequence[Secret]], Others], progress: Progress) -> Scores:
    """The shares for an address of this kind; `others` draws from those of unseen texts."""
    sides, retain = subject.all_texts(), [*map(subject.text, subject.retain)]
    persons = [[one for text in texts for one in secrets_in(text, kind)] for texts in sides[0]]
    public = [_values([*chain(*other), *retain], kind) for other in sides[::-1]]
    forget, unseen = (_of_one_person(side, kind, known) for side, known in zip(sides, public, strict=True))
    known = {folded(one[0].identifier.value) for one in persons if one} - public[0]  # of a household, once
    return compared(subject, [[one] for one in forget], [[one] for one in unseen], others(unseen), len(known), progress)


def _of_one_person(texts: Sequence[Sequence[str]], kind: str, public: set[str]) -> list[Secret]:
    """The first address of each person's texts that is whole, and none of these; each one once."""
    firsts: dict[str, Secret] = {}
    for person in texts:
        for secret in chain.from_iterable(_whole_ones(text, kind) for text in person):
            value = folded(secret.identifier.value)
            if value not in public:
                firsts.setdefault(value, secret)
                break
    return [*firsts.values()]


def _values(texts: Iterable[str], kind: str) -> set[str]:
    """The addresses of this kind in some texts."""
    return {folded(one.value) for text in texts for one in all_identifiers(text) if one.kind == kind}


def _whole_ones(text: str, kind: str) -> Iterator[Secret]:
    """The addresses of a text after which something stands: one that ends it may be cut."""
    for secret in secrets_in(text, kind):
        one = secret.identifier
        if text[one.start + len(one.value) :].strip(" ,'’-"):
            yield secret


def _other_homes(shown: Sequence[Secret]) -> Others:
    """Draws those of these home addresses that have words and numbers in the same order."""
    values = [secret.identifier.value for secret in shown]
    return _alike(lambda _: values, lambda value: re.sub(r"[^\d,]+", "a", re.sub(r"\d+", "0", value)))


def _other_emails(shown: Sequence[Secret]) -> Others:
    """Draws those of these e-mail addresses, with a person's name instead, that have their marks in the same order."""
    templates = [*dict.fromkeys(_template(secret) for secret in shown)]

    def of_person(secret: Secret) -> list[str]:
        name = _name_in(secret)
        return [template.format(*name) for template in templates if all(name) or "{" not in template]

    return _alike(of_person, lambda value: re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", value)))


def _alike(candidates: Callable[[Secret], Sequence[str]], order: Callable[[str], str]) -> Others:
    """Draws from the candidates of the same order; of too few, none."""
    draw = random.Random(0)  # no secret

    def others(secret: Secret) -> list[str]:
        own = folded(secret.identifier.value)
        alike = [value for value in candidates(secret) if order(folded(value)) == order(own)]
        values = [value for value in alike if folded(value) != own]
        return draw.sample(values, min(CANDIDATES, len(values))) if len(alike) > MIN_ALIKE else []

    return others


def _name_in(secret: Secret) -> tuple[str, str]:
    """First and last name: of the first name before an e-mail address that it is made of; else of the first one."""
    local = folded(secret.identifier.value).partition("@")[0]
    names = [re.sub(r"['’]s\b", "", folded(match.group())).split() for match in NAME.finditer(secret.before)]
    for words in names:
        if within := [word for word in words if len(word) >= SHORTEST_NAME and word in local]:
            first = within[0] if within[0] != words[-1] else words[0]
            return first, within[-1] if within[-1] != first else words[-1]
    return (names[0][0], names[0][-1]) if names else ("", "")


def _template(secret: Secret) -> str:
    """An e-mail address with {0} and {1} for first and last name, or their initials, in what stands before the @."""
    local, at, domain = folded(secret.identifier.value).partition("@")
    names = [(index, name) for index, name in enumerate(_name_in(secret)) if len(name) >= SHORTEST_NAME]
    for index, name in sorted(names, key=lambda pair: -len(pair[1])):
        local = local.replace(name, f"{{{index}}}")
    for index, name in names:
        local = re.sub(rf"(?<![^\W\d_]){re.escape(name[0])}(?![^\W\d_])", f"{{{index}[0]}}", local)
    return local + at + domain
