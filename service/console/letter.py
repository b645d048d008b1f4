"""A letter to the person: what became of the request, in words without a term of the trade."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from service.console.documents import Block, Document
from service.console.words import ATTACKS, moment, written

OUTCOMES = {
    "completed": (
        "We have trained a copy of the model to stop producing the texts that your request is about, and have "
        "published this copy in place of the model. Before that we tested how much of these texts it still continues "
        "and predicts. The results are within the limits that we take from texts that it has never seen."
    ),
    "not_memorised": (
        "We tested how much the model continues and predicts of the texts that your request is about. The results are "
        "within the limits that we take from texts that it has never seen. So there was nothing to change in it."
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
    "handled_otherwise": "[Say here how the request was dealt with.] The model was not changed for it.",
    "withdrawn": "You took your request back. The model was not changed for it.",
    "not_covered": "The law that you named does not give a right to what you asked for. [Say here why.]",
    "other": "[Say here how the request was dealt with.]",
}
REASONS = {  # for the person; others are the operator's to explain
    "too_short": "The text that you sent is too short to be tested.",
    "too_generic": "The text that you sent is so general that it cannot be tested.",
    "not_the_subject": "The texts that we found are not about you.",
    "identity_not_proven": "We could not confirm who you are.",
    "not_covered": "The law that you named does not give a right to what you asked for.",
    "utility_budget_exceeded": "The change that your request needs would have damaged the model too much.",
    "neighbours_lost": "The change that your request needs would have damaged the model too much.",
}
LIMITS = (
    "No test can show that nothing of a text is left in a model. Our record says which tests were made, and with what "
    "results; you get it from us if you ask. This letter is about the model."
)
PLACES = "[Say here what was done with your data in other places, such as the training data, or why nothing was.]"
RECIPIENTS = "[Say here when those who have copies of the earlier model were told of the newer one.]"
FURTHER_TESTS = (
    "We made further tests that do not decide whether we publish, over all requests of this change together. These "
    "were not passed: {questions} We cannot say whether this is about your texts."
)
RIGHTS = {
    "gdpr": "If you are not content with this answer, you may complain to a data protection authority [name the one "
    "that is competent for you], or go to court (GDPR, articles 77 and 79).",
    "ccpa": "If you are not content with this answer, you may write to us again, or to the California Privacy "
    "Protection Agency.",
    "other": "If you are not content with this answer, you may write to us again, or to the authority for data "
    "protection where you live.",
}


def letter_about(request: Mapping[str, Any], version: Mapping[str, Any] | None = None) -> Document:
    """A draft of the letter about a request that has ended. It names no text and no person.

    Args:
        request: The request.
        version: The version that fulfils it, with its attacks, if there is one.
    """
    outcome = "nothing_found" if request["reason"] == "nothing_found" else request["status"]
    if request["resolved_at"]:
        outcome = request["resolved_reason"]
    case = request["reference"] or request["ref"][:12]
    blocks = [
        Block("text", "[Name and address of the controller]"),
        Block("text", "[Name and address of the person]"),
        Block("text", f"Case {case}. {written(datetime.now(UTC))}."),
        Block(
            "lead",
            f"We received your request on {written(moment(request['received_at']))}: to delete what our language model "
            f"{request['model']} holds about you.",
        ),
        Block("text", OUTCOMES[outcome]),
    ]
    if outcome in ("rejected", "failed") and request["reason"] in REASONS:
        blocks.append(Block("text", f"Why: {REASONS[request['reason']]}"))
    if request["extension_reason"]:
        blocks.append(Block("text", f"We extended the deadline to {written(moment(request['due_at']))}."))
    if request["status"] == "completed" and outcome == "completed":
        failed = [attack["name"] for attack in version["attacks"] if attack["passed"] is False] if version else []
        if failed:
            questions = " ".join(f"“{ATTACKS.get(name, name)}”" for name in failed)
            blocks.append(Block("text", FURTHER_TESTS.format(questions=questions)))
        if version:
            day = written(moment(version["created_at"]))
            blocks.append(Block("text", f"This is version {version['version']} of the model, published on {day}."))
        blocks.append(Block("text", LIMITS))
        blocks.append(Block("text", RECIPIENTS))
        blocks.append(
            Block("text", f"In the record of the change, your request has the reference {request['ref'][:12]}.")
        )
    if outcome in ("completed", "not_memorised", "nothing_found"):
        blocks.append(Block("text", PLACES))
    blocks.append(Block("text", RIGHTS[request["regulation"]]))
    blocks.append(Block("text", "[Name, and how to reach the data protection officer]"))
    return Document("Your deletion request", blocks)
