"""The command line: `unlearnd`. One file for each group of commands. The client's commands import no database."""

import sys

from service.cli import audit, corpora, jobs, keys, log, models, operator, requests, stack, versions
from service.cli.console import app, print_message
from service.domain.errors import ClientError

__all__ = [
    "app",
    "audit",
    "corpora",
    "jobs",
    "keys",
    "log",
    "main",
    "models",
    "operator",
    "requests",
    "stack",
    "versions",
]


def main() -> None:
    """Run the command line. A `ClientError` becomes one line on standard error and exit code 1."""
    try:
        app()
    except ClientError as error:
        print_message(f"unlearnd: {error}", "red")
        sys.exit(1)
