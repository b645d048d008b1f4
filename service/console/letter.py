"""A letter to the person: what became of the request, in words without a term of the trade."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from service.console.documents import Block, Document
from service.console.words import reason

OUTCOMES = {
    "completed": (
        "We have changed the model so that it stops producing the texts that your request is about, and have published "
        "the changed model in place of the one before. We tested the changed model before we published it: it treats "
        "these texts like texts that it has never seen, within the limits of our tests."
    ),
    "not_memorised": (
        "We tested the model. It already treats the texts that your request is about like texts that it has never "
        "seen. So there was nothing to change in it."
    ),
    "nothing_found": (
        "We looked for what you told us in the training data of the model, and found nothing about you. So there was "
        "nothing to change in the model."
    ),
    "rejected": "We could not fulfil your request.",
    "cancelled": "The request was cancelled before it was carried out. The model was not changed for it.",
    "failed": (
        "We could not fulfil your request yet. The model was not replaced. We still owe you an answer, and go on "
        "working on it."
    ),
}
LIMITS = (
    "No test can show that nothing of a text is left in a model. Our record says which tests were made, and with what "
    "results. Copies of the model that others had downloaded before are not changed by this; we can tell those who "
    "downloaded it that there is a newer one."
)
RIGHTS = {
    "gdpr": "If you are not content with this answer, you may complain to a data protection authority, or go to court "
    "(GDPR, articles 77 and 79).",
    "ccpa": "If you are not content with this answer, you may write to us again, or to the California Privacy "
    "Protection Agency.",
    "other": "If you are not content with this answer, you may write to us again, or to the authority for data "
    "protection where you live.",
}


def letter_about(request: Mapping[str, Any]) -> Document:
    """The letter about a request that has ended. It names no text and no person: whoever sends it adds the address."""
    outcome = "nothing_found" if request["reason"] == "nothing_found" else request["status"]
    case = request["reference"] or request["ref"][:12]
    blocks = [
        Block("text", f"Case {case}. {_day(datetime.now(UTC).isoformat())}."),
        Block(
            "lead",
            f"On {_day(request['received_at'])} you asked us to delete what our language model {request['model']} "
            "holds about you.",
        ),
        Block("text", OUTCOMES[outcome]),
    ]
    if request["status"] in ("rejected", "failed") and request["reason"]:
        blocks.append(Block("text", f"Why: {reason(request['reason'])}"))
    if request["extension_reason"]:
        blocks.append(Block("text", f"We extended the deadline to {_day(request['due_at'])}."))
    if request["status"] == "completed" and outcome == "completed":
        blocks.append(Block("text", LIMITS))
        blocks.append(Block("text", f"In the record of the change, your request has the name {request['ref']}."))
    blocks.append(Block("text", RIGHTS[request["regulation"]]))
    return Document("Your deletion request", blocks)


def _day(value: str) -> str:
    moment = datetime.fromisoformat(value).astimezone(UTC)
    return f"{moment.day} {moment:%B %Y}"
