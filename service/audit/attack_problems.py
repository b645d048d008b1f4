"""What a published release must state about attacks and probes.

The policy was in the log before the run. So whoever leaves a row out, or names another effect in it, is seen. Of an
attack the certificate has no scores of single texts, so that a stated result is taken as it is.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal

from service.audit.certificate import MANDATORY_ATTACKS, memorised_count
from service.audit.predicate import Attack, Method, Predicate, Verification
from service.domain.attacks import ATTACK_NAMES, FEWEST_UNSEEN, MAY_NOT_APPLY, TWO_SIDED

RESULTS = {"PASS": True, "FAIL": False, None: None}
LEVEL = Decimal("0.05")  # of the tests of all attacks together; as in the engine
ROUNDING = Decimal("0.00001")
CLEARLY = 2  # how far below the level the least p-value must be; as in the engine
NONE = (0, "0")  # of the prompts; schemas 4 to 6 have no ranges


def attack_problems(predicate: Predicate) -> Iterator[str]:
    """Each attack of the policy is listed once, with the policy's effect; one that blocks was run and did not succeed.

    An attack that the policy does not name was off. A policy of an earlier release names none: there the list says what
    each was. Schemas 1 to 3 have no effects, and list others in words.
    """
    verification = predicate["verification"]
    listed = {attack["name"]: attack for attack in verification["attacks"]}
    effects = _effects(predicate["method"], listed)
    made = sum(effect != "off" for effect in effects.values())
    most = memorised_count(request["reason"] for request in predicate["requests"])
    if max(Counter(attack["name"] for attack in verification["attacks"]).values(), default=1) > 1:
        yield "an attack is listed twice"
    if "probes" in verification and not listed.keys() <= {*ATTACK_NAMES, *MANDATORY_ATTACKS}:
        yield "an attack is listed that no policy can name"
    for name in MANDATORY_ATTACKS:
        attack = listed.get(name)
        if attack is None or (attack["status"], attack["result"], attack.get("passed", True)) != ("RUN", "PASS", True):
            yield f"the attack “{name}” was not run, or succeeded"
    for name in (name for name in ATTACK_NAMES if name in effects or "effect" in listed.get(name, ())):
        effect = effects.get(name, "off")
        if name not in listed or listed[name].get("effect") != effect:
            yield f"the policy has “{effect}” for the attack “{name}”, which is not listed so"
        elif listed[name]["status"] == "RUN":
            yield from _run_problems(listed[name], effect, made, most)
        else:
            yield from _left_out_problems(listed[name], effect)


def _effects(method: Method, listed: Mapping[str, Attack]) -> dict[str, str]:
    """The effect of each attack that the policy names; if it has no such field, of each that is listed with one."""
    if "attacks" not in method["parameters"]:
        return {name: attack["effect"] for name, attack in listed.items() if "effect" in attack}
    parts = (str(entry).partition("=") for entry in method["parameters"]["attacks"] or ())
    return {name: effect for name, _, effect in parts}


def _run_problems(attack: Attack, effect: str, made: int, most: int) -> Iterator[str]:
    """An attack that was run has one result, at the level of so many tests, beside enough never-seen text.

    It scored `most` texts at most. Where even the most unlike scores would pass, the result says nothing.
    """
    name, level, unseen = attack["name"], attack.get("level"), attack.get("unseen", 0)
    if effect == "off":
        yield f"the attack “{name}” was run, and is off by the policy"
    if attack["result"] is None or attack.get("passed") != RESULTS[attack["result"]]:
        yield f"the attack “{name}” has two results, or none"
    if level is None or Decimal(level) * made < LEVEL - ROUNDING:
        yield f"the attack “{name}” was tested at a weaker level than 0.05 for all attacks together"
    least = Decimal(2 if name in TWO_SIDED else 1) / math.comb(most + unseen, most)
    if unseen < FEWEST_UNSEEN or (level is not None and most and least * CLEARLY > Decimal(level) + ROUNDING):
        yield f"the attack “{name}” was compared with too few never-seen texts"
    if effect == "block" and attack["result"] != "PASS":
        yield f"the attack “{name}” succeeded"


def _left_out_problems(attack: Attack, effect: str) -> Iterator[str]:
    """An attack that was not run has a reason that fits the policy, and no result."""
    name, why = attack["name"], attack.get("why")
    stated = (attack["result"], attack.get("passed"), attack.get("level"), *scores(attack))
    if attack.get("unseen", 0) or any(part is not None for part in stated):
        yield f"the attack “{name}” was not run, and has a result"
    if (why == "off") != (effect == "off") or why is None:
        yield f"the attack “{name}” was not run, for a reason that does not fit the policy"
    elif why == "not_applicable" and name not in MAY_NOT_APPLY:
        yield f"the attack “{name}” applies to every text, and was not run"
    elif effect == "block" and why != "not_applicable":
        yield f"the attack “{name}” blocks by the policy, and was not run"


def scores(attack: Attack) -> tuple[str | None, ...]:
    """The scores of an attack that are means over submitted texts, or compared with them; None where it has none."""
    return attack.get("figure"), attack.get("control"), attack.get("auc")


def probe_problems(verification: Verification, method: Method) -> Iterator[str]:
    """No probe is answered. A policy of an earlier release names no samples, and its jobs may have no probes."""
    probes, samples = verification.get("probes"), method["parameters"].get("probe_samples")
    if probes is None:
        if samples is not None:
            yield "nobody counted which prompts the model answers"
        return
    if probes["answered_after"] not in NONE:
        yield "the model answers a prompt with what it must not say"
    if samples is not None and probes["samples"] != samples:
        yield "the prompts were asked in another number of samples than the policy's"
