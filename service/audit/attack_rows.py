"""The attacks of a certificate as rows of a table for people."""

from collections.abc import Sequence

from service.audit.numbers import trimmed
from service.audit.predicate import Attack

ATTACK_HEADERS = ("attack", "result", "the records", "unseen text", "told apart")


def attack_rows(attacks: Sequence[Attack]) -> list[tuple[str, ...]]:
    """A row for each attack: its result, its mean scores, and how often a record scores higher than unseen text."""
    return [
        (
            attack["name"].replace("_", " "),
            f"tried, {attack['result']}" if attack["status"] == "RUN" else f"not tried{_reason(attack.get('why'))}",
            *(trimmed(score or "") for score in (attack.get("figure"), attack.get("control"), attack.get("auc"))),
        )
        for attack in attacks
    ]


def _reason(code: str | None) -> str:
    """Why an attack was not tried, in words."""
    return f": {code.replace('_', ' ')}" if code and code != "off" else ""
