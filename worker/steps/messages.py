"""What a worker believes of its compute child: messages of bounded size, and no free text in them.

The child has read people's texts, and foreign model files. What it reports goes into tables, logs and certificates.
"""

import json
import re
from collections.abc import Iterator
from typing import IO

from service.domain.errors import PermanentJobError
from service.domain.json_types import Json, JsonObject
from service.domain.states import COMPUTE_STAGES

MAX_BYTES = 2**24  # of a message
CODE = re.compile(r"[A-Za-z0-9_.:/+!-]{0,200}")  # names, versions, digests; no sentence


def read_messages(stream: IO[bytes]) -> Iterator[JsonObject]:
    """The messages of a child, one of each line.

    Raises:
        ValueError: A line is too long, is cut, or is not JSON.
    """
    while line := stream.readline(MAX_BYTES):
        yield json.loads(line)


def check_message(message: Json) -> None:
    """Check that a message names a stage of the compute worker, if it names one, and that its strings are codes.

    Raises:
        PermanentJobError: It does not.
    """
    if not isinstance(message, dict) or message.get("stage", "unlearn") not in COMPUTE_STAGES:
        raise PermanentJobError("child_message")
    if not all(CODE.fullmatch(string) for string in _strings(message)):
        raise PermanentJobError("child_message")


def _strings(value: Json) -> Iterator[str]:
    """Every string of a JSON value, without the names of files: certify compares those with the parent's."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from _strings(list(member.values()) if name == "files" and isinstance(member, dict) else member)
