"""Adapters whose factors were moved as training would."""

import torch

from tests import support
from worker.engine import row_importance
from worker.engine.adapter import Adapter, find_targets, target_weights
from worker.engine.inits import INITS

RANK, SCALE = 4, 2.0


def sequences(count: int, length: int = 12, seed: int = 0) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, support.VOCABULARY, (count, length), generator=generator).tolist()


def trained_adapter(model, init: str = "fila") -> Adapter:
    """An adapter on all targets whose factors were moved as training would."""
    names = find_targets(model)
    importance = row_importance(model, sequences(2), sequences(3, seed=1), names)
    factors = {n: INITS[init].factors(w, importance[n], RANK, SCALE) for n, w in target_weights(model, names).items()}
    adapter = Adapter(model, factors, SCALE)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapter
