"""The command line: `unlearnd`. One file for each group of commands. The client's commands import no database."""

import os
import sys

from service.cli import audit, corpora, jobs, keys, log, models, operator, requests, stack, versions
from service.cli.console import app, print_message
from service.domain.errors import ClientError
from service.explain import explained

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
    """Run the command line.

    A `ClientError` becomes one line on standard error and exit code 1. What keeps a command from starting or going on
    becomes one line, too.
    """
    try:
        explained(_run)
    except ClientError as error:
        print_message(f"unlearnd: {error}", "red")
        sys.exit(1)


def _run() -> None:
    """Run the command line, and see whether its output arrives: the disk may be full."""
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
            raise
