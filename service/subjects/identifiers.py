"""What a person is found by: identifiers and words, each as a keyed hash; nothing of them is stored as it was.

Identity types and formats are those of OpenDSR 2.0, and `phone`. A hashed identity is the hash of the value in the
form that `normalised` gives it.
"""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterator, Sequence

import phonenumbers

from service.privacy.envelope import KeyWrapper
from service.schemas.base import IDENTITY_TYPES

DEVICE_IDS = frozenset(IDENTITY_TYPES) - {"controller_customer_id", "email", "phone"}
DIGESTS = {"sha1": 40, "md5": 32, "sha256": 64}  # and how many hex digits each has
DOMAIN = r"(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}"
EMAIL = re.compile(rf"(?<![\w.+'-])[\w.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@{DOMAIN}")
PLAIN = re.compile(r"[\w.+'-]+$")  # the end of a local part that is written as people's addresses are
PHONE_LIKE = re.compile(r"\+?\(?\d(?:[\s()./-]{0,3}\d){6,16}")
WORD = re.compile(r"\w+")
MOST_WORDS = 16_383  # the highest position that a tsvector has
MASK = (1 << 63) - 1


class NotAnIdentity(ValueError):
    """The value is not one of that type and format; the message does not repeat it."""


def normalised(kind: str, value: str, region: str | None = None) -> str:
    """The one form of an identifier's value: e-mail and device ids in lower case, phone numbers as E.164.

    Raises:
        NotAnIdentity: It cannot be one of this type.
    """
    value = unicodedata.normalize("NFKC", value).strip()
    if kind == "phone":
        try:
            number = phonenumbers.parse(value, region)
        except phonenumbers.NumberParseException:
            raise NotAnIdentity("not a telephone number in international form") from None
        return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
    if kind == "email":
        value = value.lower()
        if not EMAIL.fullmatch(value):
            raise NotAnIdentity("not an e-mail address")
    elif kind in DEVICE_IDS:
        value = value.lower()
    if not value:
        raise NotAnIdentity("empty")
    return value


def digests(kind: str, form: str, value: str) -> Iterator[str]:
    """`type|format|hex` of an identity: all formats of a raw one, its own of a hashed one.

    Raises:
        NotAnIdentity: It cannot be one of this type and format.
    """
    if form != "raw":
        value = value.strip().lower()
        if not re.fullmatch(f"[0-9a-f]{{{DIGESTS[form]}}}", value):
            raise NotAnIdentity(f"not a {form} in hex digits")
        yield f"{kind}|{form}|{value}"
        return
    data = normalised(kind, value).encode()
    for name in DIGESTS:
        yield f"{kind}|{name}|{hashlib.new(name, data, usedforsecurity=False).hexdigest()}"


def detected(text: str, region: str | None) -> Iterator[tuple[str, str]]:
    """(type, normalised value) of every e-mail address and telephone number in a text.

    Without a region, numbers are found in international form alone.
    """
    for found in EMAIL.finditer(text):
        for address in _readings(found.group()):
            try:
                yield "email", normalised("email", address)
            except NotAnIdentity:
                continue  # in its usual form it is none
    if PHONE_LIKE.search(text):
        for number in phonenumbers.PhoneNumberMatcher(text, region):
            yield "phone", phonenumbers.format_number(number.number, phonenumbers.PhoneNumberFormat.E164)


def _readings(found: str) -> list[str]:
    """What an address in a text may be: as it stands, and without what often stands around one.

    `to=jane@example.org`, `*jane@example.org*`, `-jane@example.org--` are Jane's, and `o'brien@example.org` is whole.
    """
    local, _, domain = found.rpartition("@")
    plain, domain = PLAIN.search(local), domain.rstrip("-_")
    names = [local, plain.group() if plain else ""]
    names += [trimmed for name in names for trimmed in (name.lstrip(".'-"), name.strip("._'-"))]
    return list(dict.fromkeys([found, *(f"{name}@{domain}" for name in names if name)]))


def without_identifiers(text: str) -> str:
    """The text less its e-mail addresses and whatever looks like a telephone number."""
    return PHONE_LIKE.sub(" ", EMAIL.sub(" ", text))


def says_more(copy: str, text: str) -> bool:
    """Whether a text has a word that another has not, identifiers aside."""
    return not set(words(without_identifiers(copy))) <= set(words(without_identifiers(text)))


def words(text: str) -> list[str]:
    """The words of a text in order, in one case and form."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Hasher:
    """Keyed hashes of 63 bits, as PostgreSQL's bigint has them; without the key nobody can test a guess."""

    def __init__(self, wrapper: KeyWrapper) -> None:
        """Derive the index's key from the key-encryption key."""
        self._key = wrapper.keyed_hash("subject index", b"")

    def number(self, purpose: str, data: bytes) -> int:
        """One hash, not negative."""
        return int.from_bytes(hmac.digest(self._key, purpose.encode() + b"\0" + data, "sha256")[:8], "big") & MASK

    def identity(self, kind: str, form: str, value: str) -> list[int]:
        """What an identity is looked up by.

        Raises:
            NotAnIdentity: It cannot be one of this type and format.
        """
        return [self.number("identity", digest.encode()) for digest in digests(kind, form, value)]

    def identities(self, text: str, columns: Sequence[tuple[str, str]], region: str | None) -> list[int]:
        """All that a record can be found by: what is detected in its text, and (type, value) of its columns."""
        found = set(detected(text, region))
        for kind, value in columns:
            try:
                found.add((kind, normalised(kind, value, region)))
            except NotAnIdentity:
                continue  # a cell that holds no such thing
        return sorted({n for kind, value in found for n in self.identity(kind, "raw", value)})

    def lexemes(self, text: str) -> str:
        """A text as a tsvector's input: hashed words with their positions; the first 16,383 words."""
        positions: dict[str, list[int]] = {}
        for position, word in enumerate(words(text)[:MOST_WORDS], 1):
            positions.setdefault(word, []).append(position)
        return " ".join(f"{self._lexeme(w)}:{','.join(map(str, at[:255]))}" for w, at in positions.items())

    def phrase(self, name: str) -> str | None:
        """A name as a tsquery: its words in a row, or the last one first; None for a name without a word."""
        parts = [self._lexeme(word) for word in words(name)]
        if not parts:
            return None
        orders = dict.fromkeys([tuple(parts), (*parts[-1:], *parts[:-1])])
        return " | ".join(f"({' <-> '.join(order)})" for order in orders)

    def _lexeme(self, word: str) -> str:
        return f"{self.number('word', word.encode()):016x}"
