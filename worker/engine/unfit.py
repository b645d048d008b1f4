"""Requests that a run cannot unlearn: too short or too long to be measured, or too generic."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.engine.criterion import MIN_HELDOUT
from worker.engine.data import MOST_RETAIN, normalised, spread, text_windows, without_forget_text
from worker.engine.errors import TooShort
from worker.engine.options import Options
from worker.engine.types import Tokenizer

GENERIC_COUNT, GENERIC_SHARE = 3, 0.1  # reference texts that one request may leave out
GENERIC_TOTAL = 0.25  # share of a file's texts that may be left out before a request of the batch may leave out no more


@dataclass(frozen=True, slots=True)
class Unfit:
    """Requests of a batch that do not run in it.

    Attributes:
        rejected: Index of a request -> too_short, too_long or too_generic. They can never be unlearned.
        put_off: Indices of requests that are fit alone, and not beside the others.
    """

    rejected: dict[int, str]
    put_off: list[int]


def unfit_requests(
    tokenizer: Tokenizer,
    forget_texts: Sequence[str],
    request_ids: Sequence[int],
    retain_texts: Sequence[str],
    heldout_texts: Sequence[str],
    options: Options,
    neighbour_texts: Sequence[Sequence[str]] = (),
) -> Unfit:
    """Requests that cannot be unlearned, or not in this batch.

    A text of a few common words stands in many retain and held-out texts. All of them would be left out, and too few
    would stay to train on and to set thresholds. A reference text of which a text makes up most does not count, once
    for each text, as long as enough stay: somebody's own text stands in the retain file, too.

    A request is rejected only for what it leaves out of the whole files alone: no other request, of the batch or of an
    earlier job, takes part in that. If it is fit alone, and too much is left out beside the requests before it, it is
    put off. The first fit request of a batch is never put off, so a batch that is run again and again comes to its end.

    Args:
        tokenizer: The model's tokenizer.
        forget_texts: Texts to forget.
        request_ids: For each of them the index of its request.
        retain_texts: Texts to keep the model's abilities on.
        heldout_texts: Texts the model has never seen.
        options: The run's options.
        neighbour_texts: Of each other set of neighbours the texts.

    Returns:
        The requests to reject and to put off.
    """
    texts_by_request: dict[int, list[str]] = {}
    for text, request_id in zip(forget_texts, request_ids, strict=True):
        texts_by_request.setdefault(request_id, []).append(text)
    unfit = Unfit({}, [])
    files = [list(retain_texts), list(heldout_texts), *(spread(texts, MOST_RETAIN) for texts in neighbour_texts)]
    left = files
    for request_id, texts in texts_by_request.items():
        if code := _unmeasurable(tokenizer, texts, options):
            unfit.rejected[request_id] = code
            continue
        kept = [set(without_forget_text(file, texts)[0]) for file in files]
        if _is_generic(files, files, kept, texts):
            unfit.rejected[request_id] = "too_generic"
        elif _is_generic(files, left, kept, texts):
            unfit.put_off.append(request_id)
        else:
            left = [[text for text in before if text in staying] for before, staying in zip(left, kept, strict=True)]
    return unfit


def _unmeasurable(tokenizer: Tokenizer, texts: Sequence[str], options: Options) -> str | None:
    """Why nothing can be measured on one of a request's texts, or not on all of them together; None if it can."""
    try:
        count = sum(len(text_windows(tokenizer, text, options.sequence_length)) for text in texts)
    except TooShort as error:
        return error.code
    return "too_long" if count > options.max_request_sequences else None


def _is_generic(
    files: Sequence[list[str]], left: Sequence[list[str]], kept: Sequence[set[str]], texts: Sequence[str]
) -> bool:
    """Whether a request leaves out too much of the retain or held-out texts, or of neighbours; see `_spoils`."""
    needed = (1, MIN_HELDOUT, *(0 for _ in files[2:]))  # a set of neighbours may have the request's texts alone
    parts = zip(files, left, kept, needed, strict=True)
    return any(_spoils(len(file), before, staying, texts, needed) for file, before, staying, needed in parts)


def _spoils(total: int, before: list[str], kept: set[str], texts: Sequence[str], needed: int) -> bool:
    """Whether a request leaves out too much of a file of reference texts.

    Args:
        total: Texts of the whole file.
        before: Those that stay without the request.
        kept: Those of the whole file that contain no text of the request.
        texts: The texts of the request.
        needed: Texts of the file that must stay.

    Returns:
        Whether it is too generic for this file.
    """
    left_out = [text for text in before if text not in kept]
    staying = len(before) - len(left_out)
    excess = 0
    for text in texts:
        if not left_out:
            break
        rest, count = without_forget_text(left_out, [text])
        own = any(_is_mostly(text, reference) for reference in left_out if reference not in rest)
        left_out, excess = rest, excess + count - own
    too_many = excess > max(GENERIC_COUNT, GENERIC_SHARE * total)
    over_total = excess > 0 and total - staying > GENERIC_TOTAL * total
    return too_many or over_total or staying < min(len(before), needed)


def _is_mostly(text: str, reference: str) -> bool:
    """Whether a text makes up at least half of a reference text: whoever sends it knows the reference text."""
    return 2 * len(normalised(text)) >= len(normalised(reference))
