"""Where weights files keep the weights of a model's modules: under another name, in parts, or stacked with others.

transformers renames, stacks and joins weights while it loads them, by rules for each family. Here its own rules are run
backwards on small marked matrices, and the marks show what became of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from worker.engine.errors import UnmergedModule
from worker.engine.experts import separated
from worker.engine.types import CausalLM

ROWS, COLUMNS = 12, 5  # of a marked matrix
MANY = 10  # times as many rows: a rule that leaves some rows as they are, may change the order of others


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a module's weight [d, k] is kept.

    Attributes:
        name: The tensor's name without `.weight`; of stacked matrices with the index of one: `experts.down_proj.3`.
        first: The first row, in twelfths of d.
        last: The row behind the last one, in twelfths of d.
        transposed: It is kept as [k, d].
    """

    name: str
    first: int
    last: int
    transposed: bool

    def part(self, matrix: Tensor) -> Tensor:
        """Its rows of a matrix [d, ...]."""
        return matrix[self.first * len(matrix) // ROWS : self.last * len(matrix) // ROWS]


def stored_places(model: CausalLM, names: Sequence[str]) -> dict[str, list[Place]]:
    """Module name -> the places of its weight, in the order of its rows.

    Args:
        model: A model whose experts are separate; it needs no numbers.
        names: Full names of its modules.

    Returns:
        One place or some of each module.

    Raises:
        UnmergedModule: Files keep one of the weights in a form that is not known here.
    """
    places = _places(model, names, 1)
    if places != _places(model, names, MANY):
        raise UnmergedModule("target_modules: files keep some of them with their rows in another order")
    return places


def _places(model: CausalLM, names: Sequence[str], each: int) -> dict[str, list[Place]]:
    """The places, by marked matrices of `each` times ROWS rows."""
    rows = each * ROWS
    marks = torch.arange(len(names) * rows * COLUMNS, dtype=torch.float64).reshape(len(names), rows, COLUMNS)
    try:
        kept = revert_weight_conversion(model, _as_loaded(model, dict(zip(names, marks, strict=True))))
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        raise UnmergedModule("target_modules: files keep some of them in a form that is not known") from error
    places: dict[str, list[Place]] = {name: [] for name in names}
    for key, tensor in sorted(kept.items()):
        for name, matrix in _matrices(key.removesuffix(".weight"), tensor):
            index, first = divmod(int(matrix.min()) // COLUMNS, rows)
            for transposed, part in ((False, matrix), (True, matrix.T)):
                if index >= 0 and torch.equal(part, marks[index, first : first + len(part)]):
                    shares = first // each, (first + len(part)) // each
                    places[names[index]].append(Place(name, *shares, transposed))
    for name, parts in places.items():
        parts.sort(key=lambda place: place.first)
        if [*(place.first for place in parts), ROWS] != [0, *(place.last for place in parts)]:
            raise UnmergedModule(f"target_modules: files keep {name} in a form that is not known")
    return places


def _as_loaded(model: CausalLM, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> tensor: of separate experts the stacked parameters, as transformers has them."""
    loaded = {f"{name}.weight": matrix for name, matrix in matrices.items()}
    for parent, layer in separated(model).items():
        for projection in layer._modules["0"]:
            keys = [f"{parent}.{index}.{projection}.weight" for index in range(layer.num_experts)]
            if any(key in loaded for key in keys):
                unmarked = torch.full_like(next(loaded[key] for key in keys if key in loaded), -1.0)
                stacked = torch.stack([loaded.pop(key, unmarked) for key in keys])
                loaded[f"{parent}.{projection}"] = stacked.mT if layer.is_transposed else stacked
    return loaded


def _matrices(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, matrix) of a tensor's matrices."""
    if tensor.dim() == 2:
        yield name, tensor
    else:
        yield from ((f"{name}.{index}", matrix) for index, matrix in enumerate(tensor))
