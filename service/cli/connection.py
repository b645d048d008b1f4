"""What the client's commands share: the connection, progress bars, files that options name, private files.

The imports stand in the functions because commands start fast: an offline command loads no HTTP client, and most
commands draw no progress bar.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from service.cli.console import stderr_console
from service.domain.errors import ClientError
from service.domain.json_types import Json
from service.text_files import UnreadableTexts, read_texts

if TYPE_CHECKING:
    from rich.progress import Progress

    from service.client.http import Client


def progress_bars(*, hidden: bool) -> "Progress":
    """Progress bars on standard error, with a description, a percentage and the elapsed time."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    description, percentage = TextColumn("{task.description:<28}"), TextColumn("{task.percentage:>3.0f}%")
    columns = (description, BarColumn(), percentage, TimeElapsedColumn())
    return Progress(*columns, console=stderr_console, disable=hidden)


def download_bars(*, hidden: bool) -> "Progress":
    """Progress bars on standard error that count bytes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, console=stderr_console, disable=hidden)


def read_json(file: Path, option: str, *, kind: type = dict) -> Json:
    """Read a JSON file that an option names.

    Raises:
        ClientError: The file cannot be read, or is not JSON of this kind. The message names the option.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ClientError(f"{option}: {file} cannot be read, or is not JSON") from error
    if not isinstance(content, kind):
        raise ClientError(f"{option}: {file} holds no JSON {'list' if kind is list else 'object'}")
    return content


def create_private(path: Path) -> TextIO:
    """Create a new file that only its owner may read.

    Raises:
        ClientError: The file exists, or cannot be created.
    """
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from error


def server_path(path: str) -> str:
    """The path as the server needs it: absolute if it exists here, otherwise unchanged."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def connect() -> "Client":
    """A client of the service that UNLEARND_URL and UNLEARND_API_KEY name."""
    from service.client.http import Client

    return Client.from_environment()


def read_records(file: Path) -> list[str]:
    """The texts of `--file`.

    Raises:
        ClientError: The file cannot be read, or is not a file of texts.
    """
    try:
        return list(read_texts(file))
    except (UnreadableTexts, UnicodeDecodeError) as error:
        raise ClientError(f"--file: {error}") from error
    except OSError as error:
        raise ClientError(f"--file: {error.strerror}") from error


def read_resubmission(receipt_file: Path) -> dict[str, object]:
    """The reference and the nonces of an earlier request, from its receipt."""
    receipt = read_json(receipt_file, "--resubmits").get("receipt", {})
    return {"ref": receipt.get("ref"), "nonces": [record["nonce"] for record in receipt.get("records", ())]}
