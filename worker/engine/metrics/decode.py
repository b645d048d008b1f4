"""Greedy continuations of every prefix of a sequence, exactly, without T^2/2 sequential steps.

Three shortcuts make it fast (METHOD, "Metrics"; Jang et al., github.com/joeljang/knowledge-unlearning at 732876d,
generates each prefix on its own):

(a) *Chain*: where argmax p(. | x_<t) is x_t, the continuation of x_<t is x_t followed by that of x_<t+1.
    Only mismatching prefixes are generated.
(b) *Shared prefill*: the keys and values of x_<t are a slice of those of x. All prefixes, of several
    sequences, are decoded as rows of one batch; a row leaves when it is finished.
(c) *No n-gram left*: EL_n counts n-grams of x. A row leaves as soon as its remaining tokens could not complete one:
    any n-gram that ends in them would have to contain the row's last tokens, and x does not contain those.

Where a model's cache cannot be cut (recurrent layers, a cache of its own), (b) is left out and the text is read again.
A row's slice is right-aligned in the batch's cache, so that distances inside the cache are distances in the
sequence and sliding-window attention stays right.

b: batch, s: sequence, r: rows, h: heads, d: head size, v: vocabulary
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from worker.engine.data import batches, chunks
from worker.engine.device import measuring, model_device
from worker.engine.metrics.caching import cache_argument, caches_tokens
from worker.engine.metrics.predictions import next_tokens, predictions
from worker.engine.progress import Progress, no_progress, partial_progress
from worker.engine.types import CausalLM

EndTokens = frozenset[int]
PREFILLED = 16  # tokens of whole texts for each row that is decoded at once


@dataclass(slots=True)
class GreedyDecoding:
    """The result of greedy decoding on one sequence x of length T.

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


class _NGrams:
    """The runs of 1..n tokens that occur in x; the set of each size is made at its first use."""

    def __init__(self, input_ids: Sequence[int], n: int) -> None:
        self._ids, self.n = input_ids, n
        self._by_size: dict[int, set[tuple[int, ...]]] = {}

    def __contains__(self, run: tuple[int, ...]) -> bool:
        size = len(run)
        if size not in self._by_size:
            self._by_size[size] = {tuple(self._ids[i : i + size]) for i in range(len(self._ids) - size + 1)}
        return run in self._by_size[size]


@dataclass(slots=True)
class Row:
    """A prefix that is being continued.

    Attributes:
        sequence: The index of its sequence.
        prefix: The length of the prefix.
        length: How many tokens the finished continuation has.
        tokens: The continuation so far.
        ngrams: The n-grams of the sequence; None decodes every token.
    """

    sequence: int
    prefix: int
    length: int
    tokens: list[int]
    ngrams: _NGrams | None

    def done(self, eos: EndTokens) -> bool:
        """Whether the continuation is complete, ended, or cannot complete an n-gram any more."""
        remaining = self.length - len(self.tokens)
        if remaining <= 0 or self.tokens[-1] in eos:
            return True
        if self.ngrams is None or remaining >= self.ngrams.n:
            return False
        return tuple(self.tokens[-(self.ngrams.n - remaining) :]) not in self.ngrams


class _RowLayer(DynamicLayer):  # type: ignore[misc]  # transformers is read as Any
    """A key/value cache with spare columns, so that a step writes one column instead of copying all."""

    def __init__(self, keys: Tensor, values: Tensor, spare: int) -> None:
        super().__init__()
        self.key_buffer, self.value_buffer = (  # a value may be of another size than a key
            part.new_zeros((*part.shape[:2], part.shape[2] + spare, part.shape[3])) for part in (keys, values)
        )
        self.key_buffer[:, :, : keys.shape[2]] = keys
        self.value_buffer[:, :, : keys.shape[2]] = values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._view(keys.shape[2])

    def _view(self, end: int) -> None:
        """Let keys and values be the first `end` columns of their buffers."""
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self._view(end)
        return self.keys, self.values

    def keep_rows(self, rows: Tensor, drop: int) -> None:
        """Keep these rows, and drop their first `drop` columns, which are padding in all of them."""
        end = self.keys.shape[2] - drop
        self.key_buffer = self.key_buffer[rows, :, drop:]
        self.value_buffer = self.value_buffer[rows, :, drop:]
        self._view(end)


def greedy_continuations(
    model: CausalLM,
    sequences: Sequence[list[int]],
    *,
    eos_token_id: int | Collection[int] | None = None,
    n: int | None = None,
    row_budget: int = 256,
    progress: Progress = no_progress,
) -> Iterator[GreedyDecoding]:
    """The greedy continuation of every prefix of every sequence, some sequences at a time.

    Args:
        model: A causal language model.
        sequences: Token ids, two or more each; lengths may differ.
        eos_token_id: Generation stops at this token, or any of these, and does not count it; None never stops early.
        n: Leave out a continuation's last tokens if they cannot complete an n-gram of x; None decodes all tokens.
        row_budget: Prefixes decoded at once, fewer if their cache would be wider than the longest sequence. It bounds
            memory; sixteen times as many tokens are prefilled at once.
        progress: Called with the fraction done, 0..1.

    Yields:
        GreedyDecoding: Of each sequence, in order. The continuations of a text are many times as long as it.
    """
    eos = frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or ())
    group = max(1, PREFILLED * row_budget // max(map(len, sequences), default=1))
    for index, part in enumerate(chunks(sequences, group)):
        done, share = index * group / len(sequences), len(part) / len(sequences)
        yield from _decode_group(model, part, eos, n, row_budget, partial_progress(progress, done, share))
    progress(1.0)


def _decode_group(
    model: CausalLM,
    sequences: list[list[int]],
    eos: EndTokens,
    n: int | None,
    row_budget: int,
    progress: Progress,
) -> list[GreedyDecoding]:
    """Prefill some sequences once, decode their mismatching prefixes, then chain the rest."""
    with measuring(model):
        cache = DynamicCache() if caches_tokens(model) else None
        prefill = {"use_cache": False} if cache is None else {"use_cache": True, cache_argument(model): cache}
        predicted = predictions(model, sequences, **prefill)
        decodings = [GreedyDecoding(ids, row) for ids, row in zip(sequences, predicted, strict=True)]
        ngrams = [_NGrams(ids, n) if n else None for ids in sequences]
        rows = [
            Row(index, t, len(greedy.input_ids) - t, [greedy.predicted[t - 1]], ngrams[index])
            for index, greedy in enumerate(decodings)
            for t, matched in enumerate(greedy.matches, start=1)
            if not matched
        ]
        rows.sort(key=lambda row: row.length)
        total = sum(row.length for row in rows) or 1
        done, columns = 0, row_budget * max(map(len, sequences))
        for batch in batches(rows, lambda row: (row.prefix, row.length), columns, row_budget):
            if cache is None:
                _recompute_rows(model, sequences, batch, eos)
            else:
                _decode_rows(model, cache, [row for row in batch if not row.done(eos)], eos)
            done += sum(row.length for row in batch)
            progress(done / total)
    generated = {(row.sequence, row.prefix): row.tokens for row in rows}
    for index, greedy in enumerate(decodings):
        greedy.continuations = _chain(greedy, generated, index, eos)
    return decodings


def _recompute_rows(model: CausalLM, sequences: Sequence[list[int]], rows: list[Row], eos: EndTokens) -> None:
    """Continue all rows to their end without a cache: the whole text is read again for each token."""
    while rows := [row for row in rows if not row.done(eos)]:
        texts = [sequences[row.sequence][: row.prefix] + row.tokens for row in rows]
        for row, token in zip(rows, next_tokens(model, texts), strict=True):
            row.tokens.append(token)


def _decode_rows(model: CausalLM, prefill: DynamicCache, rows: list[Row], eos: EndTokens) -> None:
    """Continue all rows to their end, appending to their tokens."""
    if not rows:
        return
    device, argument = model_device(model), cache_argument(model)
    spare = max(row.length for row in rows) - 1
    cache, mask = row_cache(prefill, rows, spare, device)
    positions = torch.tensor([[row.prefix] for row in rows], device=device)
    width, limit = mask.shape[1], max(row.prefix + row.length for row in rows)
    while rows:
        tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        arguments = {argument: cache, "use_cache": True}
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions, **arguments).logits
        for row, token in zip(rows, logits[:, -1].argmax(-1).tolist(), strict=True):
            if not row.done(eos):
                row.tokens.append(token)
        keep = [i for i, row in enumerate(rows) if not row.done(eos)]
        positions = (positions + 1).clamp(
            max=limit - 1
        )  # a finished row that stays in the batch asks for no position beyond the model's
        # Removing rows copies the cache. So an eighth of them leaves at once, or all of them before the cache outgrows
        # a sequence.
        if len(keep) * 8 <= len(rows) * 7 or (len(keep) < len(rows) and mask.shape[1] >= limit - 1):
            rows = [rows[i] for i in keep]
            new_width = max((row.prefix for row in rows), default=0)
            kept = torch.tensor(keep, dtype=torch.long, device=device)
            drop = width - new_width
            mask, positions, width = mask[kept, drop:], positions[kept], new_width
            for layer in cache.layers:
                layer.keep_rows(kept, drop)


def row_cache(prefill: DynamicCache, rows: list[Row], spare: int, device: torch.device) -> tuple[DynamicCache, Tensor]:
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
            spare,
        )
        for layer in prefill.layers
    ]
    return cache, mask


def _chain(
    greedy: GreedyDecoding, generated: dict[tuple[int, int], list[int]], index: int, eos: EndTokens
) -> list[list[int]]:
    """Continuations for t = 1..T-1; matching ones are chained from the right (shortcut a)."""
    following: list[int] = []
    continuations: list[list[int]] = []
    for t in range(len(greedy.input_ids) - 1, 0, -1):
        token = greedy.input_ids[t]
        if greedy.predicted[t - 1] == token:
            following = [] if token in eos else [token, *following]
        else:
            following = generated[index, t]
            if following[-1] in eos:
                following = following[:-1]
        continuations.append(following)
    return continuations[::-1]
