"""Identifiers and words by which a person is looked up. The index stores only keyed hashes of them.

Identity types and formats are those of OpenDSR 2.0, plus `phone`. A hashed identity is the hash of the normalised value
(see `normalised`).
"""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterator, Sequence

import phonenumbers

from service.privacy.envelope import Wrapper
from service.schemas.base import IDENTITY_TYPES

DEVICE_IDS = frozenset(IDENTITY_TYPES) - {"controller_customer_id", "email", "phone"}
DIGESTS = {"sha1": 40, "md5": 32, "sha256": 64}  # format -> number of hex digits
DOMAIN = r"(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}"
EMAIL = re.compile(rf"(?<![\w.+'-])[\w.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@{DOMAIN}")
PLAIN_LOCAL_PART = re.compile(r"[\w.+'-]+$")  # the end of a local part, of characters that real addresses have
PHONE_LIKE = re.compile(r"\+?\(?\d(?:[\s()./-]{0,3}\d){6,16}")
WORD = re.compile(r"\w+")
MAX_WORDS = 16_383  # the highest position in a tsvector
MAX_POSITIONS = 255  # of one lexeme in a tsvector
MASK_63_BITS = (1 << 63) - 1


class NotAnIdentity(ValueError):
    """The value does not have the type and format that it should have. The message does not repeat the value."""


def normalise(kind: str, value: str, region: str | None = None) -> str:
    """The normal form of an identifier: e-mail addresses and device ids in lower case, phone numbers as E.164.

    Raises:
        NotAnIdentity: The value is not of this type.
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
    """Yield `type|format|hex` of an identity: in every format for a raw value, in its own format for a hashed one.

    Raises:
        NotAnIdentity: The value is not of this type and format.
    """
    if form != "raw":
        value = value.strip().lower()
        if not re.fullmatch(f"[0-9a-f]{{{DIGESTS[form]}}}", value):
            raise NotAnIdentity(f"not a {form} in hex digits")
        yield f"{kind}|{form}|{value}"
        return
    data = normalise(kind, value).encode()
    for name in DIGESTS:
        yield f"{kind}|{name}|{hashlib.new(name, data, usedforsecurity=False).hexdigest()}"


def detect_identifiers(text: str, region: str | None) -> Iterator[tuple[str, str]]:
    """Yield (type, normalised value) of every e-mail address and phone number in a text.

    Without a region, only numbers in international form count.
    """
    for match in EMAIL.finditer(text):
        for address in _possible_addresses(match.group()):
            try:
                yield "email", normalise("email", address)
            except NotAnIdentity:
                continue  # its normal form is not an address
    if PHONE_LIKE.search(text):
        for number in phonenumbers.PhoneNumberMatcher(text, region):
            yield "phone", phonenumbers.format_number(number.number, phonenumbers.PhoneNumberFormat.E164)


def _possible_addresses(written: str) -> list[str]:
    """The addresses that this text may mean: as written, and without characters that often surround an address.

    `to=jane@example.org`, `*jane@example.org*` and `-jane@example.org--` all give jane@example.org. The address
    `o'brien@example.org` stays whole.
    """
    local_part, _, domain = written.rpartition("@")
    plain, domain = PLAIN_LOCAL_PART.search(local_part), domain.rstrip("-_")
    local_parts = [local_part, plain.group() if plain else ""]
    local_parts += [trimmed for part in local_parts for trimmed in (part.lstrip(".'-"), part.strip("._'-"))]
    return list(dict.fromkeys([written, *(f"{part}@{domain}" for part in local_parts if part)]))


def without_identifiers(text: str) -> str:
    """The text without its e-mail addresses and without anything that looks like a phone number."""
    return PHONE_LIKE.sub(" ", EMAIL.sub(" ", text))


def has_additional_words(copy: str, text: str) -> bool:
    """Whether `copy` has a word that `text` does not have. Identifiers do not count."""
    return not set(words(without_identifiers(copy))) <= set(words(without_identifiers(text)))


def words(text: str) -> list[str]:
    """The words of a text in order, case-folded and normalised (NFKC)."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Hasher:
    """Keyed hashes of 63 bits, which fit PostgreSQL's bigint. Without the key nobody can test a guess."""

    def __init__(self, wrapper: Wrapper) -> None:
        """Derive the index's key from the key-encryption key."""
        self._key = wrapper.keyed_hash("subject index", b"")

    def number(self, purpose: str, data: bytes) -> int:
        """The hash of `data` for one purpose; not negative."""
        return (
            int.from_bytes(hmac.digest(self._key, purpose.encode() + b"\0" + data, "sha256")[:8], "big") & MASK_63_BITS
        )

    def identity(self, kind: str, form: str, value: str) -> list[int]:
        """The hashes by which an identity is looked up.

        Raises:
            NotAnIdentity: The value is not of this type and format.
        """
        return [self.number("identity", digest.encode()) for digest in digests(kind, form, value)]

    def identities(self, text: str, columns: Sequence[tuple[str, str]], region: str | None) -> list[int]:
        """The hashes of all identifiers of a record: those in its text, and the (type, value) of its columns."""
        identifiers = set(detect_identifiers(text, region))
        for kind, value in columns:
            try:
                identifiers.add((kind, normalise(kind, value, region)))
            except NotAnIdentity:
                continue  # the cell does not hold an identifier
        return sorted({number for kind, value in identifiers for number in self.identity(kind, "raw", value)})

    def lexemes(self, text: str) -> str:
        """The input of a tsvector for a text: hashed words with their positions, of the first 16,383 words."""
        positions: dict[str, list[int]] = {}
        for position, word in enumerate(words(text)[:MAX_WORDS], 1):
            positions.setdefault(word, []).append(position)
        return " ".join(
            f"{self._lexeme(word)}:{','.join(map(str, numbers[:MAX_POSITIONS]))}" for word, numbers in positions.items()
        )

    def phrase(self, name: str) -> str | None:
        """The tsquery for a name: its words in a row, or with the last word first. None for a name without words."""
        lexemes = [self._lexeme(word) for word in words(name)]
        if not lexemes:
            return None
        orders = dict.fromkeys([tuple(lexemes), (*lexemes[-1:], *lexemes[:-1])])
        return " | ".join(f"({' <-> '.join(order)})" for order in orders)

    def _lexeme(self, word: str) -> str:
        return f"{self.number('word', word.encode()):016x}"
