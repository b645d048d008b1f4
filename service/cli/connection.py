"""What the client's commands share: the connection, progress bars, files of JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from service.domain.errors import ClientError
from service.domain.json_types import Json

if TYPE_CHECKING:
    from service.client import Client


COLUMNS = (
    TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
)  # fmt: skip


def read_json(file: Path, option: str) -> Json:
    """What a file of JSON holds.

    Raises:
        ClientError: It cannot be read; names the option.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ClientError(f"{option}: {file} is not there, or not JSON") from error


def connect() -> "Client":
    """A client of the service that the environment names; what it needs is imported here, not for offline commands."""
    from service.client.http import Client

    return Client.from_environment()
