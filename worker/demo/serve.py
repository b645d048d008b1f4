"""What the demo leaves to look at in the console, if it stays up: something of each kind."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from service.client.http import Client
from worker.demo.people import Person

MONTH = timedelta(days=30)  # in the GDPR a calendar month: the deadline is tomorrow, or a day or two later


def add_what_waits(client: Client, sample: Path, policy: Mapping[str, object], others: Sequence[Person]) -> None:
    """Beside the finished requests: one that waits for a decision, and one that is due tomorrow.

    Args:
        client: Of the stack, which has the model `demo`.
        sample: The sample's folder.
        policy: The policy of a second model, whose requests must be approved.
        others: People whom the model knows and who have not asked yet.
    """
    base, retain, heldout = (str(sample / name) for name in ("model", "retain.jsonl", "heldout.jsonl"))
    client.add_corpus("demo", "people", str(sample / "people.jsonl"), columns={"email": "email"})
    client.submit("demo", subject={"identities": [], "names": [others[0].name]}, reference="DEMO-4")
    client.add_model(
        "demo-reviewed", base, retain, heldout, {**policy, "approvals": 1}
    )  # else it would be done at once
    received = datetime.now(UTC) - MONTH + timedelta(days=1)
    text = others[1].text
    client.submit("demo-reviewed", [text], reference="DEMO-5", regulation="gdpr", received_at=received.isoformat())


def stay(url: str, key_file: Path, console: Console) -> None:
    """Say where the console is, and wait for Ctrl-C."""
    console.rule("8  the console")
    console.print(f"   {url}/console")
    console.print(f"   the API key to sign in with: {key_file.read_text().strip()}")
    console.print("   Ctrl-C stops everything.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("   stopping ...")
