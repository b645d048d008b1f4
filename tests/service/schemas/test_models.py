"""A policy's defaults and presets are the engine's."""

from dataclasses import replace
from decimal import Decimal

from service.audit.policy import TOTAL_BUDGET
from service.schemas.models import Policy
from worker.engine import options
from worker.engine.options import Options


def test_policies_say_what_the_engine_does():
    """A policy's defaults and its presets are the engine's; what a policy names wins over its preset."""
    assert Options.from_mapping(Policy().model_dump()) == Options()
    assert Options.from_mapping(Policy(preset="paper").model_dump()) == Options.paper()
    mixed = Options.from_mapping(Policy(preset="paper", shrink=True).model_dump())
    assert mixed == replace(Options.paper(), shrink=True)


def test_the_verifier_derives_the_same_budget_of_all_versions_as_the_engine():
    """Where a policy names none; neither may import the other."""
    assert Decimal(str(options.TOTAL_BUDGET)) == TOTAL_BUDGET
    for ratio in (1.01, 1.1, 1.25, 3.0):
        assert (
            f"{Options(max_perplexity_ratio=ratio).max_total_ratio:.6f}" == f"{TOTAL_BUDGET * Decimal(str(ratio)):.6f}"
        )
    assert Options(max_total_perplexity_ratio=2.0).max_total_ratio == 2.0
