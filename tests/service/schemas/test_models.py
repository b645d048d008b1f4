"""A policy's defaults and presets are the engine's."""

from dataclasses import replace

from service.schemas.models import Policy
from worker.engine.options import Options


def test_policies_say_what_the_engine_does():
    """A policy's defaults and its presets are the engine's; what a policy names wins over its preset."""
    assert Options.from_mapping(Policy().model_dump()) == Options()
    assert Options.from_mapping(Policy(preset="paper").model_dump()) == Options.paper()
    mixed = Options.from_mapping(Policy(preset="paper", shrink=True).model_dump())
    assert mixed == replace(Options.paper(), shrink=True)
