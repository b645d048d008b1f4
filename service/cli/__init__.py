"""The command line: `unlearnd`. One file a group of commands; those of the client import no database."""

import sys

from service.cli import audit, corpora, jobs, keys, log, models, operator, requests, stack
from service.cli.console import app, say
from service.domain.errors import ClientError

__all__ = ["app", "audit", "corpora", "jobs", "keys", "log", "main", "models", "operator", "requests", "stack"]


def main() -> None:
    """Run the command line; errors of the service are one line on standard error."""
    try:
        app()
    except ClientError as error:
        say(f"unlearnd: {error}", "red")
        sys.exit(1)
