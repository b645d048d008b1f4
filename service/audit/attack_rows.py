"""The attacks and the quantised copies of a certificate as rows of tables for people."""

from collections.abc import Sequence

from service.audit.attack_problems import scores
from service.audit.certificate import MANDATORY_ATTACKS
from service.audit.numbers import trimmed
from service.audit.predicate import Attack, Quantised

ATTACK_HEADERS = (
    "attack",
    "by the policy",
    "result",
    "the records",
    "unseen text",
    "told apart",
    "level",
    "unseen texts",
)

EFFECTS = {"block": "decides", "report": "is reported", "off": "is left out"}

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
    """A row for each attack: its effect, result and mean scores, how often a record scores higher, the test's level."""
    return [
        (
            attack["name"].replace("_", " "),
            "decides" if attack["name"] in MANDATORY_ATTACKS else EFFECTS.get(attack.get("effect", ""), ""),
            f"tried, {attack['result']}" if attack["status"] == "RUN" else f"not tried{_reason(attack.get('why'))}",
            *(trimmed(score or "") for score in (*scores(attack), attack.get("level"))),
            str(attack.get("unseen") or ""),
        )
        for attack in attacks
    ]


def _reason(code: str | None) -> str:
    """Why an attack was not tried, in words."""
    return f": {code.replace('_', ' ')}" if code and code != "off" else ""
