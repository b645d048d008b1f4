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

ROWS, COLUMNS = 2, 3  # of a marked matrix: two rows show which half of a joined weight it is


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a module's weight [d, k] is kept.

    Attributes:
        name: The tensor's name without `.weight`; of stacked matrices with the index of one: `experts.down_proj.3`.
        first: The first row, as a share of all rows: 0 or 0.5.
        last: The row behind the last one: 0.5 or 1.
        transposed: It is kept as [k, d].
    """

    name: str
    first: float
    last: float
    transposed: bool


def stored_places(model: CausalLM, names: Sequence[str]) -> dict[str, list[Place]]:
    """Module name -> the places of its weight, in the order of its rows.

    Args:
        model: A model whose experts are separate; it needs no numbers.
        names: Full names of its modules.

    Returns:
        One place or two of each module.

    Raises:
        UnmergedModule: Files keep one of the weights in a form that is not known here.
    """
    marks = torch.arange(len(names) * ROWS * COLUMNS, dtype=torch.float64).reshape(len(names), ROWS, COLUMNS)
    kept = revert_weight_conversion(model, _as_loaded(model, dict(zip(names, marks, strict=True))))
    places: dict[str, list[Place]] = {name: [] for name in names}
    for key, tensor in sorted(kept.items()):
        for place, matrix in _matrices(key.removesuffix(".weight"), tensor):
            if matrix.min() < 0:
                continue
            index, row = divmod(int(matrix.min()), ROWS * COLUMNS)
            first = row // COLUMNS
            for transposed, rows in ((False, matrix), (True, matrix.T)):
                if torch.equal(rows, marks[index, first : first + len(rows)]):
                    shares = first / ROWS, (first + len(rows)) / ROWS
                    places[names[index]].append(Place(place, *shares, transposed))
    for name, found_places in places.items():
        found_places.sort(key=lambda place: place.first)
        if [place.first for place in found_places] + [1.0] != [0.0] + [place.last for place in found_places]:
            raise UnmergedModule(f"target_modules: files keep {name} in a form that is not known")
    return places


def _as_loaded(model: CausalLM, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> tensor: of separate experts the stacked parameters, as transformers has them."""
    loaded = {f"{name}.weight": matrix for name, matrix in matrices.items()}
    for parent, layer in separated(model).items():
        for projection in layer._modules["0"]:
            keys = [f"{parent}.{index}.{projection}.weight" for index in range(layer.num_experts)]
            if any(key in loaded for key in keys):
                unmarked = torch.full((ROWS, COLUMNS), -1.0, dtype=torch.float64)
                stacked = torch.stack([loaded.pop(key, unmarked) for key in keys])
                loaded[f"{parent}.{projection}"] = stacked.mT if layer.is_transposed else stacked
    return loaded


def _matrices(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, matrix) of a tensor's matrices."""
    if tensor.dim() == 2:
        yield name, tensor
    else:
        yield from ((f"{name}.{index}", matrix) for index, matrix in enumerate(tensor))
