"""Which rows a reference is lowered in, and what it says then."""

from dataclasses import replace

import pytest
import torch

from tests import support
from worker.engine.criterion import Threshold, judge
from worker.engine.data import encode
from worker.engine.forget_set import ForgetSet
from worker.engine.lowering import rows_to_lower, with_numbers_last
from worker.engine.metrics.extraction import lower_bound
from worker.engine.metrics.memorization import accuracy, token_matches
from worker.engine.metrics.token_scores import scores_of_rows, token_margins
from worker.engine.reference import Reference

LIMITS = Threshold(12, 3, 40, 0.1, 0.3, 0.2, 0.6, 0.0, 0.5, 0.7)
FORGET = ForgetSet([[0] * 12] * 3, [0, 0, 1])


def margins(seed: int, shift: float = 0.0) -> list[torch.Tensor]:
    """Random margins of three sequences."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(11, generator=generator) + shift for _ in range(3)]


@pytest.mark.parametrize("seed", range(20))
def test_the_criterion_holds_without_the_rows(seed):
    """What remains meets each limit with the reserve. Nothing is lowered where nothing is over a limit."""
    before = margins(seed, 0.5)
    rows = rows_to_lower(FORGET, [LIMITS] * 3, before, [0, 1], 0.01)
    after = [[bool(m > 0) and (i, row) not in rows for row, m in enumerate(of)] for i, of in enumerate(before)]
    ma = [accuracy(matches) + 0.01 for matches in after]
    el = [lower_bound(matches, 3) for matches in after]
    assert judge(FORGET, [LIMITS] * 3, el, ma).passed
    assert all(before[i][row] > 0 for i, row in rows)
    few = [torch.where(torch.arange(11) == int(margin.argmax()), 1.0, -1.0) for margin in before]  # MA 1 / 11
    assert not rows_to_lower(FORGET, [LIMITS] * 3, few, [0, 1], 0.01)


def test_the_highest_value_of_a_sequence_has_the_reserve_too():
    """A sequence of 200 tokens at the limit: the judgement adds the reserve, so a row must go."""
    forget, limits = (
        ForgetSet([[0] * 200] * 2, [0, 0]),
        replace(LIMITS, n=10, ma_mean=0.5, ma_p95=0.6, ma_max=100 / 199),
    )
    margin = torch.tensor([1.0, -1.0] * 99 + [1.0])  # MA 100 / 199, no runs
    assert len(rows_to_lower(forget, [limits] * 2, [margin, -torch.ones(199)], [0], 0.005)) == 1


def test_the_smallest_margins_go_first():
    """Three of four right tokens have to go; the surest one stays."""
    (margin,) = [torch.tensor([-1.0, 3.0, -1.0, 1.0, -1.0, 2.0, -1.0, 4.0, -1.0, -1.0])]
    limits = replace(LIMITS, ma_mean=0.1)
    assert rows_to_lower(ForgetSet([[0] * 11], [0]), [limits], [margin], [0], 0.0) == {(0, 3), (0, 5), (0, 1)}


@pytest.mark.parametrize(
    ("numbers", "lowered"), [([3], {(0, 5), (0, 1), (0, 7)}), ([0, 3, 5], {(0, 1), (0, 7), (0, 3)})]
)
def test_numbers_go_last(numbers, lowered):
    """Three of four right tokens have to go. A number is among them only if the others do not suffice."""
    (margin,) = [torch.tensor([-1.0, 3.0, -1.0, 1.0, -1.0, 2.0, -1.0, 4.0, -1.0, -1.0])]
    limits, forget = replace(LIMITS, ma_mean=0.1), ForgetSet([[0] * 11], [0])
    ordered = with_numbers_last([margin], [[row in numbers for row in range(10)]])
    assert rows_to_lower(forget, [limits], ordered, [0], 0.0) == lowered
    assert ((ordered[0] > 0) == (margin > 0)).all()


def test_an_earlier_request_has_no_part_in_the_set():
    """Its mean may be over the held-out mean; its own limit counts."""
    margin = torch.tensor([1.0, -1.0] * 5)  # MA 0.5
    forget = ForgetSet([[0] * 11], [7])
    assert not rows_to_lower(forget, [LIMITS], [margin], [], 0.0)
    assert len(rows_to_lower(forget, [LIMITS], [margin], [7], 0.0)) == 2


def test_a_lowered_row_has_another_likeliest_token_and_every_other_row_stays(memorised):
    """The true token is less likely than another one by the gap."""
    model, tokenizer = memorised
    ids = encode(tokenizer, support.KNOWN[0])
    reference = Reference(model, [ids], [ids], [encode(tokenizer, support.HELDOUT[0])])
    (known,) = token_margins(model, [ids])
    logits, targets = reference.beside([0])(slice(None)), torch.tensor(ids[1:])
    lowered = logits.scatter_add(-1, targets[:, None], -known.clamp(min=0)[:, None])
    for name in ("log_p", "z"):  # the one falls in a row that is lowered, the other rises
        as_it_is, once = (getattr(scores_of_rows(q, targets), name) for q in (logits, lowered))
        margins, added = reference.true_tokens(0, lambda says, name=name: (getattr(says, name), None))
        torch.testing.assert_close(margins, known + as_it_is, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(added, as_it_is if name == "log_p" else once, atol=1e-3, rtol=1e-3)
    assert [bool(m > 0) for m in known] == token_matches(model, [ids])[0]
    before = reference.beside([0])(slice(0, 20)).clone()
    row = int((known[:20] > 0).nonzero()[0])
    reference.gaps[0][row] = 0.5
    after = reference.beside([0])(slice(0, 20))
    target = ids[row + 1]
    others = torch.cat([after[row, :target], after[row, target + 1 :]])
    assert float(others.max() - after[row, target]) == pytest.approx(0.5, abs=1e-4)
    before[row, target] = after[row, target]
    assert torch.equal(before, after)
