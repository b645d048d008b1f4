"""What training presses on with IHL where the criterion is missed in a few places.

EL asks what greedy decoding says after every prefix. It may say a piece of a text that the model, given the true words
before it, would not. So what is pressed is what greedy decoding says: a prefix of the text, and the model's own words.
"""

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter

from worker.engine.criterion import Judgement, Threshold
from worker.engine.data import chunks
from worker.engine.forget_set import ForgetSet
from worker.engine.likelihoods import greedy_decodings
from worker.engine.losses.ihl import inverted_hinge_rows
from worker.engine.lowering import Rows, with_numbers_last
from worker.engine.metrics.extraction import extracted_chains
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.token_scores import token_margins
from worker.engine.options import Options
from worker.engine.probes import Answer, as_rows
from worker.engine.types import CausalLM

SEQUENCES, ANSWERS, CHAINS, MARGIN = 8, 8, 16, 0.1  # in a step; of IHL
MOST_DECODED = 64  # sequences whose greedy decoding is looked at
Backward = Callable[..., float]  # adds the gradients of a loss, as `add_gradients` does for one model


@dataclass(frozen=True, slots=True)
class Pressed:
    """What is over a limit.

    Attributes:
        rows: Sequences to forget, each with the rows whose true tokens are to become less likely.
        answers: Answers that the model still gives.
        extracted: What greedy decoding extracts, as `extracted` has it.
    """

    rows: list[tuple[list[int], list[int]]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    extracted: list[Answer] = field(default_factory=list)

    def add_gradients(self, order: random.Random, backward: Backward, most_tokens: int) -> float:
        """Add the gradients of IHL on some of it.

        Args:
            order: Draws them.
            backward: Adds the gradients of a loss.
            most_tokens: How many tokens of answers one backward pass takes; one answer is taken as it is.

        Returns:
            The loss.
        """
        gently, loss = partial(inverted_hinge_rows, margin=MARGIN), 0.0
        if self.rows:
            pressed = order.sample(self.rows, min(SEQUENCES, len(self.rows)))
            loss += backward([ids for ids, _ in pressed], gently, 1.0, rows=[rows for _, rows in pressed])
        for answers, most, row_loss in (
            (self.answers, ANSWERS, inverted_hinge_rows),
            (self.extracted, CHAINS, gently),
        ):
            drawn = order.sample(answers, min(most, len(answers)))
            size = max(1, most_tokens // max((len(answer.input_ids) for answer in drawn), default=1))
            for part in chunks(drawn, size):
                sequences, starts = as_rows(part)
                loss += backward(sequences, row_loss, len(part) / len(drawn), starts=starts)
        return loss


def grouped(sequences: Sequence[list[int]], rows: Rows) -> list[tuple[list[int], list[int]]]:
    """Each sequence that has some of these rows, with its own, as `Pressed` has them."""
    return [(sequences[i], [row for _, row in own]) for i, own in groupby(sorted(rows), itemgetter(0))]


def extracted(
    model: CausalLM,
    forget: ForgetSet,
    thresholds: Sequence[Threshold],
    requests: Sequence[int],
    options: Options,
    numbers: Container[int] = (),
) -> tuple[list[Answer], set[int]]:
    """Where greedy decoding says an n-gram of the true continuation: the one token of it that is the easiest to change.

    Args:
        model: The model.
        forget: The sequences to forget.
        thresholds: The threshold of each of them.
        requests: The requests whose sequences are decoded, the MOST_DECODED that are known best.
        options: The run's options.
        numbers: Tokens with a digit; they are pressed on where nothing else is in the n-gram.

    Returns:
        For each prefix that extracts one the tokens up to that token of its first n-gram, each once; and the indices of
        the sequences that they say.
    """
    indices = forget.indices(requests)
    if len(indices) > MOST_DECODED:
        matches = token_matches(model, [forget.sequences[i] for i in indices])
        known = dict(zip(indices, map(accuracy, matches), strict=True))
        indices = sorted(sorted(indices, key=lambda i: -known[i])[:MOST_DECODED])
    smallest_n = min((thresholds[i].n for i in indices), default=1)
    decodings = greedy_decodings(model, [forget.sequences[i] for i in indices], smallest_n, options)
    chains: dict[tuple[int, ...], int] = {}
    said: set[int] = set()
    for i, decoding in zip(indices, decodings, strict=True):
        of_sequence = extracted_chains(decoding, thresholds[i].n)
        chains |= dict.fromkeys(map(tuple, of_sequence), thresholds[i].n)
        if of_sequence:
            said.add(i)
    easiest = []
    margins = token_margins(model, [list(chain) for chain in chains])
    ordered = with_numbers_last(margins, [[token in numbers for token in chain[1:]] for chain in chains])
    for (chain, n), margin in zip(chains.items(), ordered, strict=True):
        token = len(chain) - n + int(margin[-n:].argmin())
        easiest.append(Answer(list(chain[: token + 1]), token))
    return easiest, said


def failed_by_el(judgement: Judgement, forget: ForgetSet, counted: Sequence[int]) -> set[int]:
    """The requests whose verdict fails, and those of the highest EL until the mean of the others would pass.

    The set's mean is over sequences, a verdict's over those of its request.
    """
    failed = {v.request for v in judgement.verdicts if not v.passed}
    lengths = {request: len(forget.indices([request])) for request in counted}
    own = sorted((v for v in judgement.verdicts if v.request in lengths), key=lambda v: v.el)
    while own and sum(v.el * lengths[v.request] for v in own) > judgement.el_limit * sum(lengths.values()):
        failed.add(own.pop().request)
    return failed
