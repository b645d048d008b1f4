"""The attacks that a policy can name."""

from typing import Literal, TypeAlias, get_args

AttackName: TypeAlias = Literal[
    "sampled",
    "extraction_strength",
    "membership_loss",
    "membership_min_k",
    "membership_min_k_pp",
    "exposure",
    "exposure_dates",
    "exposure_addresses",
    "prompts",
    "quantised",
    "relearned",
]
Effect: TypeAlias = Literal["block", "report", "off"]
ATTACK_NAMES: tuple[AttackName, ...] = get_args(AttackName)
MAY_NOT_APPLY = frozenset({"exposure", "exposure_dates", "exposure_addresses", "prompts"})  # a text may have none
FEWEST_UNSEEN = 20  # scores of never-seen text, as in the engine
