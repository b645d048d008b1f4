"""What the demo leaves to look at in the console, if it stays up: something of each kind."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from service.client.http import Client
from service.domain.deadlines import due_at
from worker.demo.people import Person


def add_what_waits(client: Client, sample: Path, policy: Mapping[str, object], others: Sequence[Person]) -> str:
    """Beside the finished requests: one that waits for a decision, and one that is due tomorrow and waits, too.

    Args:
        client: Of the stack, which has the model `demo`.
        sample: The sample's folder.
        policy: The policy of a second model, whose requests must be approved.
        others: People whom the model knows and who have not asked yet.

    Returns:
        The API key of a second person: whoever submits a request cannot approve it.
    """
    base, retain, heldout = (str(sample / name) for name in ("model", "retain.jsonl", "heldout.jsonl"))
    client.add_corpus("demo", "people", str(sample / "people.jsonl"), columns={"email": "email"})
    client.submit("demo", subject={"identities": [], "names": [others[0].name]}, reference="DEMO-4")
    client.add_model(
        "demo-reviewed", base, retain, heldout, {**policy, "approvals": 1}
    )  # else it would be done at once
    text, now = others[1].text, datetime.now(UTC)
    tomorrow = next(day for n in range(26, 34) if (day := now - timedelta(days=n)) and _days_left(day, now) == 1)
    client.submit("demo-reviewed", [text], reference="DEMO-5", regulation="gdpr", received_at=tomorrow.isoformat())
    key = client.call("POST", "/v1/api-keys", json={"name": "second person", "scopes": ["read", "approve"]})
    return str(key["key"])


def _days_left(received: datetime, now: datetime) -> int:
    """The days until the deadline of a request that was received then."""
    return (due_at(received, "gdpr").date() - now.date()).days


def stay(url: str, key_file: Path, second_key: str, console: Console) -> None:
    """Say where the console is, and wait for Ctrl-C."""
    console.rule("8  the console")
    console.print(f"   {url}/console")
    console.print(f"   the API key to sign in with: {key_file.read_text().strip()}")
    console.print(f"   the key of a second person, who may decide: {second_key}")
    console.print("   Ctrl-C stops everything.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("   stopping ...")
