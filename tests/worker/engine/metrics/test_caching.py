"""Whether a cache can be cut is tried once for each model."""

import copy

import pytest
import torch

from tests import support
from worker.engine.device import measuring
from worker.engine.metrics.caching import caches_tokens


def test_it_is_tried_once_for_each_model():
    """A copy is another model; what memory did not suffice for is tried again."""
    models, runs = [support.random_model("llama")], []

    def note(*_) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise torch.OutOfMemoryError

    def ask(model) -> bool:
        with measuring(model):
            return caches_tokens(model)

    models[0].register_forward_pre_hook(note)
    with pytest.raises(torch.OutOfMemoryError):
        ask(models[0])
    assert ask(models[0])
    tried = len(runs)
    assert ask(models[0])
    assert len(runs) == tried > 1
    models.append(copy.deepcopy(models[0]))
    assert ask(models[1])
    assert len(runs) > tried
