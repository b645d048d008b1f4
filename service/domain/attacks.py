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
    "exposure_emails",
    "prompts",
    "quantised",
    "relearned",
]
Effect: TypeAlias = Literal["block", "report", "off"]
ATTACK_NAMES: tuple[AttackName, ...] = get_args(AttackName)
MEMBERSHIP = frozenset({"membership_loss", "membership_min_k", "membership_min_k_pp"})
EXPOSURES = frozenset({"exposure", "exposure_dates", "exposure_addresses", "exposure_emails"})
TWO_SIDED = MEMBERSHIP | EXPOSURES  # a text that is less known than unseen ones tells, too; as in the engine
MAY_NOT_APPLY = EXPOSURES | {"prompts"}  # a text may have none
FEWEST_UNSEEN = 20  # scores of never-seen text, as in the engine
