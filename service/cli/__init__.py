"""The command line: `unlearnd`. Parts of the stack, a client of the API, and the offline checks."""

import sys

from service.cli import audit, client, parts, requests
from service.cli.console import app, say
from service.domain.errors import ClientError

__all__ = ["app", "audit", "client", "main", "parts", "requests"]


def main() -> None:
    """Run the command line; errors of the service are one line on standard error."""
    try:
        app()
    except ClientError as error:
        say(f"unlearnd: {error}", "red")
        sys.exit(1)
