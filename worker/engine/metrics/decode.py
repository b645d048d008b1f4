"""Greedy continuations of every prefix of a sequence, exactly, without T^2/2 sequential steps.

Two shortcuts carry it (METHOD, "Metrics"; Jang et al., github.com/joeljang/knowledge-unlearning at 732876d,
generates each prefix on its own):

(a) *Chain*: where argmax p(. | x_<t) is x_t, the continuation of x_<t is x_t followed by that of x_<t+1.
    Only mismatching prefixes are generated.
(b) *Shared prefill*: the keys and values of x_<t are a slice of those of x. All prefixes, of several
    sequences, are decoded as rows of one batch; a row leaves when it is finished.
(c) *Nothing left to find*: EL_n counts n-grams of x. A row leaves as soon as the tokens it still wants could not
    complete one: any n-gram that ends in them would have to contain the row's last tokens, and x does not.

A row's slice is right-aligned in the batch's cache, so that distances inside the cache are distances in the
sequence and sliding-window attention stays right.

b: batch, s: sequence, r: rows, h: heads, d: head size, v: vocabulary
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from worker.engine.data import chunks, pad_batch
from worker.engine.device import measuring, model_device
from worker.engine.head import Head, hidden_states

Eos = frozenset[int]


@dataclass(slots=True)
class Greedy:
    """What greedy decoding says about one sequence x of length T.

    Attributes:
        input_ids: x.
        predicted: argmax p(. | x_<t) for t = 1..T-1.
        continuations: f(x_<t) for t = 1..T-1, T-t tokens each unless EOS came first.
    """

    input_ids: list[int]
    predicted: list[int]
    continuations: list[list[int]] = field(default_factory=list)

    @property
    def matches(self) -> list[bool]:
        """Whether the model predicts x_t from x_<t, for t = 1..T-1."""
        return [p == x for p, x in zip(self.predicted, self.input_ids[1:], strict=True)]


class _Grams:
    """Which runs of 1..n tokens occur in x; made when first asked for."""

    def __init__(self, input_ids: Sequence[int], n: int) -> None:
        self._ids, self.n = input_ids, n
        self._found: dict[int, set[tuple[int, ...]]] = {}

    def __contains__(self, run: tuple[int, ...]) -> bool:
        size = len(run)
        if size not in self._found:
            self._found[size] = {tuple(self._ids[i : i + size]) for i in range(len(self._ids) - size + 1)}
        return run in self._found[size]


@dataclass(slots=True)
class _Row:
    """One prefix being continued: tokens so far and how many are wanted."""

    sequence: int
    prefix: int
    wanted: int
    tokens: list[int]
    grams: _Grams | None

    def done(self, eos: Eos) -> bool:
        left = self.wanted - len(self.tokens)
        if left <= 0 or self.tokens[-1] in eos:
            return True
        if self.grams is None or left >= self.grams.n:
            return False
        return tuple(self.tokens[-(self.grams.n - left) :]) not in self.grams


class _RowLayer(DynamicLayer):  # type: ignore[misc]  # transformers is read as Any
    """A key/value cache with room to grow, so that a step writes one column instead of copying all."""

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        shape = (*keys.shape[:2], keys.shape[2] + room, keys.shape[3])
        self.key_buffer, self.value_buffer = keys.new_zeros(shape), values.new_zeros(shape)
        self.key_buffer[:, :, : keys.shape[2]] = keys
        self.value_buffer[:, :, : keys.shape[2]] = values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show(keys.shape[2])

    def _show(self, end: int) -> None:
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: Tensor, drop: int) -> None:
        """Keep these rows, and forget the first `drop` columns, which are padding in all of them."""
        end = self.keys.shape[2] - drop
        self.key_buffer = self.key_buffer[rows, :, drop:]
        self.value_buffer = self.value_buffer[rows, :, drop:]
        self._show(end)


def cache_argument(model: Any) -> str:
    """The name of forward's cache argument: `cache` in newer transformers, `past_key_values` before."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def predictions(model: Any, sequences: Sequence[Sequence[int]], **arguments: Any) -> list[list[int]]:
    """Argmax predictions of x_1..x_T-1 for each sequence, teacher-forced; ties go to the lowest id.

    Args:
        model: A causal language model, inside `measuring`.
        sequences: Token ids, two or more each.
        **arguments: More arguments of the model's forward, a cache to fill for one.

    Returns:
        One list a sequence.
    """
    input_ids, mask, _ = pad_batch(sequences)
    device = model_device(model)
    hidden = hidden_states(model, input_ids.to(device), mask.to(device), **arguments)  # [b, s, h]
    argmax = Head(model).argmax(hidden.flatten(0, 1)).view(hidden.shape[:2]).tolist()
    return [row[: len(ids) - 1] for row, ids in zip(argmax, sequences, strict=True)]


def greedy_continuations(
    model: Any,
    sequences: Sequence[list[int]],
    *,
    eos_token_id: int | Collection[int] | None = None,
    n: int | None = None,
    row_budget: int = 256,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Greedy]:
    """The greedy continuation of every prefix of every sequence.

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each; lengths may differ.
        eos_token_id: Generation stops there and the token does not count; may be several; None never stops early.
        n: Leave out a continuation's last tokens where they cannot complete an n-gram of x; None leaves out none.
        row_budget: Prefixes decoded at once, which bounds memory; sixteen times as many tokens are prefilled at once.
        progress: Told the fraction done, 0..1.

    Returns:
        One `Greedy` a sequence, in order.
    """
    if not sequences:
        return []
    eos = frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or ())
    longest = max(map(len, sequences))
    group = max(1, 16 * row_budget // longest)
    found: list[Greedy] = []
    for part in chunks(sequences, group):
        done = len(found) / len(sequences)
        share = len(part) / len(sequences)
        found += _continue_group(model, part, eos, n, row_budget, partial(_within, progress, done, share))
    progress(1.0)
    return found


def _within(progress: Callable[[float], None], start: float, share: float, fraction: float) -> None:
    """Tell the progress of a part as that of the whole."""
    progress(start + share * fraction)


def _continue_group(
    model: Any,
    sequences: list[list[int]],
    eos: Eos,
    n: int | None,
    row_budget: int,
    progress: Callable[[float], None],
) -> list[Greedy]:
    """Prefill some sequences once, decode their mismatching prefixes, then chain the rest."""
    cache = DynamicCache()
    with measuring(model):
        predicted = predictions(model, sequences, use_cache=True, **{cache_argument(model): cache})
        found = [Greedy(ids, row) for ids, row in zip(sequences, predicted, strict=True)]
        grams = [_Grams(ids, n) if n else None for ids in sequences]
        rows = [
            _Row(index, t, len(greedy.input_ids) - t, [greedy.predicted[t - 1]], grams[index])
            for index, greedy in enumerate(found)
            for t, matched in enumerate(greedy.matches, start=1)
            if not matched
        ]
        rows.sort(key=lambda row: row.wanted)
        total = sum(row.wanted for row in rows) or 1
        done = 0
        for start in range(0, len(rows), row_budget):
            part = rows[start : start + row_budget]
            _decode(model, cache, [row for row in part if not row.done(eos)], eos)
            done += sum(row.wanted for row in part)
            progress(done / total)
    generated = {(row.sequence, row.prefix): row.tokens for row in rows}
    for index, greedy in enumerate(found):
        greedy.continuations = _chain(greedy, generated, index, eos)
    return found


def _decode(model: Any, prefill: Any, rows: list[_Row], eos: Eos) -> None:
    """Continue all rows to their end, appending to their tokens."""
    if not rows:
        return
    device, argument = model_device(model), cache_argument(model)
    room = max(row.wanted for row in rows) - 1
    cache, mask = _row_cache(prefill, rows, room, device)
    positions = torch.tensor([[row.prefix] for row in rows], device=device)
    width, limit = mask.shape[1], max(row.prefix + row.wanted for row in rows)
    while rows:
        tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        arguments = {argument: cache, "use_cache": True}
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions, **arguments).logits
        for row, token in zip(rows, logits[:, -1].argmax(-1).tolist(), strict=True):
            if not row.done(eos):
                row.tokens.append(token)
        keep = [i for i, row in enumerate(rows) if not row.done(eos)]
        positions = (positions + 1).clamp(max=limit - 1)  # a finished row that lingers stays inside the model
        # Leaving costs a copy of the cache: an eighth leaves together, or all before the cache outgrows a sequence.
        if len(keep) * 8 <= len(rows) * 7 or (len(keep) < len(rows) and mask.shape[1] >= limit - 1):
            rows = [rows[i] for i in keep]
            new_width = max((row.prefix for row in rows), default=0)
            kept = torch.tensor(keep, dtype=torch.long, device=device)
            drop = width - new_width
            mask, positions, width = mask[kept, drop:], positions[kept], new_width
            for layer in cache.layers:
                layer.keep(kept, drop)


def _row_cache(prefill: Any, rows: list[_Row], room: int, device: torch.device) -> tuple[Any, Tensor]:
    """A cache whose row r holds the keys and values of its prefix, right-aligned, and its mask [r, s]."""
    width = max(row.prefix for row in rows)
    prefixes = torch.tensor([row.prefix for row in rows], device=device)
    sequence = torch.tensor([row.sequence for row in rows], device=device)
    column = torch.arange(width, device=device)[None] - (width - prefixes)[:, None]  # [r, s], < 0 is padding
    mask = (column >= 0).long()
    column = column.clamp(min=0)
    cache = DynamicCache()
    cache.layers = [
        _RowLayer(
            layer.keys[sequence[:, None], :, column].transpose(1, 2),  # [r, h, s, d]
            layer.values[sequence[:, None], :, column].transpose(1, 2),
            room,
        )
        for layer in prefill.layers
    ]
    return cache, mask


def _chain(greedy: Greedy, generated: dict[tuple[int, int], list[int]], index: int, eos: Eos) -> list[list[int]]:
    """Continuations for t = 1..T-1, the matching ones put together from the right (shortcut a)."""
    following: list[int] = []
    found: list[list[int]] = []
    for t in range(len(greedy.input_ids) - 1, 0, -1):
        token = greedy.input_ids[t]
        if greedy.predicted[t - 1] == token:
            following = [] if token in eos else [token, *following]
        else:
            following = generated[index, t]
            if following[-1] in eos:
                following = following[:-1]
        found.append(following)
    return found[::-1]
