"""How the LoRA factors start, one file each and one line here.

An initialisation takes `(weight [d, k], importance [d] | None, rank, scale, generator)` and returns
`(A [r, k], B [d, r])`. Whatever the start, the net change is `c (B A - B0 A0)`, so the start never moves logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from worker.engine.inits.fila import fila_factors, pissa_factors
from worker.engine.inits.standard import standard_factors


@dataclass(frozen=True, slots=True)
class Init:
    """An initialisation and whether it needs the Fisher row importance."""

    factors: Callable[..., tuple[Tensor, Tensor]]
    needs_importance: bool


INITS: dict[str, Init] = {
    "fila": Init(fila_factors, needs_importance=True),
    "pissa": Init(pissa_factors, needs_importance=False),
    "lora": Init(standard_factors, needs_importance=False),
}
