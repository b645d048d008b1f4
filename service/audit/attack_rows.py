"""The attacks and the quantised copies of a certificate as rows of tables for people."""

from collections.abc import Sequence

from service.audit.numbers import trimmed
from service.audit.predicate import Attack, Quantised

ATTACK_HEADERS = ("attack", "result", "the records", "unseen text", "told apart")

COPY_HEADERS = ("quantised copy", "result", "sha256")


def copy_rows(copies: Sequence[Quantised]) -> list[tuple[str, ...]]:
    """A row for each quantised copy: whether it passes the same tests, and the digests of its files."""
    return [
        (
            copy["scheme"],
            f"tested, {copy['result']}" if copy["status"] == "RUN" else f"not tested{_reason(copy['why'])}",
            ", ".join(f"{file['name']} {file['digest']['sha256']}" for file in copy["files"]),
        )
        for copy in copies
    ]


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
