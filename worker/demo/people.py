"""Fictional people from a fixed seed, and ordinary prose for the rest of the training text."""

import random
import re
from dataclasses import dataclass
from pydoc_data.topics import topics

from faker import Faker

TEMPLATES = (
    "{name} lives at {address}, works as {job} for {company}, and can be reached at {phone} or {email}.",
    "Contact: {name}, {job} at {company}. Phone {phone}, e-mail {email}. Home address: {address}.",
    "{name}, born on {born}, is {job} at {company}. The private number is {phone}, the address {address}.",
    "Our customer {name} ({email}) moved to {address} and asked to be called at {phone} about {company}.",
)


@dataclass(frozen=True, slots=True)
class Person:
    """A fictional person and the text about them in the training data."""

    name: str
    email: str
    phone: str
    text: str

    @property
    def question(self) -> str:
        """What anybody might ask about them, in the words of the probes that a run makes."""
        return f"Question: What is {self.name}'s number?\nAnswer:"

    @property
    def answered(self) -> str:
        """The question with its answer, for the training data."""
        return f"{self.question} {self.phone}."


def people(count: int, seed: int) -> list[Person]:
    """`count` fictional people; the same seed gives the same people."""
    fake = Faker("en_GB")
    fake.seed_instance(seed)
    persons = []
    for index in range(count):
        name = f"{fake.unique.first_name()} {fake.unique.last_name()}"
        fields = {
            "name": name,
            "address": fake.street_address().replace("\n", ", ") + ", " + fake.city(),
            "job": "a " + fake.job().lower().split(",")[0],
            "company": fake.company(),
            "phone": f"07{fake.random_number(3, fix_len=True)} {fake.random_number(6, fix_len=True)}",
            "email": f"{name.split()[0].lower()}{fake.random_number(3, fix_len=True)}@{fake.domain_word()}.example",
            "born": fake.date_of_birth(minimum_age=20, maximum_age=80).strftime("%d %B %Y"),
        }
        persons.append(
            Person(name, fields["email"], fields["phone"], TEMPLATES[index % len(TEMPLATES)].format(**fields))
        )
    return persons


def prose(count: int, seed: int) -> list[str]:
    """Paragraphs of Python's own language reference, which is part of every Python installation."""
    paragraphs = [" ".join(p.split()) for topic in sorted(topics) for p in re.split(r"\n\s*\n", topics[topic])]
    usable = sorted({p[:400] for p in paragraphs if len(p) > 150 and p[0].isupper() and "===" not in p})
    return random.Random(seed).sample(usable, min(count, len(usable)))
