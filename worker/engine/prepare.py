"""Turns texts into token sequences by their role in a run: forget, retain, thresholds, utility."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.criterion import MIN_HELDOUT
from worker.engine.data import first_windows, nearest, normalised, spread, text_windows, without_forget_text
from worker.engine.errors import TooFewTexts, TooShort
from worker.engine.forget_set import ForgetSet
from worker.engine.made_probes import all_probes
from worker.engine.options import Options
from worker.engine.probes import Probe, as_answered
from worker.engine.saying import folded, secret_pattern
from worker.engine.types import Tokenizer

GENERIC_COUNT, GENERIC_SHARE = 3, 0.1  # reference texts that one request may leave out
GENERIC_TOTAL = 0.25  # share of a file's texts that may be left out before a request of the batch may leave out no more
KINDS = 2  # of neighbours in a file: like a record, like an answer
MOST_RETAIN = 1024  # retain texts that are compared with the forget set, or that a reference is trained on


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a run reads, as token ids.

    Attributes:
        forget: The forget set.
        earlier: The forget sets of earlier jobs; their request_ids continue after those of the forget set.
        retain_texts: Retain texts that contain no forget text.
        threshold_sequences: Held-out sequences that set the thresholds.
        utility: Held-out sequences for perplexity, disjoint from `threshold_sequences` where there are enough.
        retain: Retain sequences for perplexity and the Fisher estimate.
        all_retain: Retain sequences, many more, for a reference.
        neighbours: Of the retain file, then of each other set of neighbours, the sequences most like a record to
            forget, then those most like one of its probes with its secret; the likest first.
        retain_excluded: Retain texts left out because they contain a forget text.
        heldout_excluded: Held-out texts left out for the same reason.
        probes: Prompts that must not bring out a secret, of this run's requests and of earlier ones.
    """

    forget: ForgetSet
    earlier: ForgetSet
    retain_texts: list[str]
    threshold_sequences: list[list[int]]
    utility: list[list[int]]
    retain: list[list[int]]
    all_retain: list[list[int]]
    neighbours: list[list[list[int]]]
    retain_excluded: int
    heldout_excluded: int
    probes: list[Probe] = field(default_factory=list)

    @property
    def only_utility(self) -> list[list[int]]:
        """The held-out sequences that set no threshold."""
        return [ids for ids in self.utility if ids not in self.threshold_sequences]


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
    """Why nothing can be measured on a request; None if it can."""
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


def _left_by_earlier(
    retain: Sequence[str], heldout: Sequence[str], earlier_texts: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The retain and held-out texts without those that contain an earlier text.

    Only the first earlier texts are used, as many as leave half of these, a retain text and MIN_HELDOUT held-out texts.
    Otherwise many generic requests, one after the other, would leave later jobs too little.
    """
    needed_retain, needed_heldout = max(1, len(retain) / 2), max(MIN_HELDOUT, len(heldout) / 2)

    def left_by(count: int) -> tuple[list[str], list[str]]:
        first = earlier_texts[:count]
        return without_forget_text(retain, first)[0], without_forget_text(heldout, first)[0]

    def too_few(kept: tuple[list[str], list[str]]) -> bool:
        return len(kept[0]) < needed_retain or len(kept[1]) < needed_heldout

    kept = left_by(len(earlier_texts))
    if not too_few(kept):
        return kept
    return left_by(bisect_left(range(1, len(earlier_texts)), True, key=lambda count: too_few(left_by(count))))


def _kept_neighbours(texts: Sequence[str], forget_texts: Sequence[str], earlier_texts: Sequence[str]) -> list[str]:
    """A set of neighbours without texts to forget; without earlier ones, too, as long as half of the set stays."""
    own, _ = without_forget_text(texts, forget_texts)
    both, _ = without_forget_text(own, earlier_texts)
    return both if 2 * len(both) >= len(own) else own


def _neighbours(
    tokenizer: Tokenizer, files: Sequence[list[list[int]]], forget: ForgetSet, probes: Sequence[Probe], count: int
) -> list[list[list[int]]]:
    """Of each file the neighbours of either kind; an answer that says a secret of this run is to be forgotten."""
    own = [probe for probe in probes if probe.request in forget.request_ids]
    answered = [as_answered(tokenizer, probe) for probe in own]

    secrets = [secret_pattern(secret) for secret in dict.fromkeys(probe.secret for probe in own)]

    def says_secret(ids: list[int]) -> bool:
        text = folded(str(tokenizer.decode(ids, skip_special_tokens=True)))
        return any(secret.search(text) for secret in secrets)

    return [
        near
        for file in files
        for near in (nearest(file, forget.sequences, count), nearest(file, answered, count, says_secret))
    ]


def prepare(
    tokenizer: Tokenizer,
    forget_texts: Sequence[str],
    request_ids: Sequence[int],
    retain_texts: Sequence[str],
    heldout_texts: Sequence[str],
    options: Options,
    *,
    earlier_texts: Sequence[str] = (),
    earlier_request_ids: Sequence[int] = (),
    probes: Sequence[Probe] = (),
    neighbour_texts: Sequence[Sequence[str]] = (),
) -> Prepared:
    """Tokenise and split; retain and held-out texts that contain a forget text are left out.

    Texts that contain an earlier text are left out, too, as long as half of what is left of each file, a retain text
    and MIN_HELDOUT held-out texts stay. The first earlier text that would leave fewer is only measured again, and so
    are those after it.

    Args:
        tokenizer: The model's tokenizer.
        forget_texts: Texts to forget.
        request_ids: For each of them the index of its request.
        retain_texts: Texts to keep the model's abilities on.
        heldout_texts: Texts the model has never seen.
        options: The run's options.
        earlier_texts: Texts that earlier jobs unlearned, oldest first; the result must pass their verdicts, too.
        earlier_request_ids: For each of them the index of its request; distinct from those in `request_ids`.
        probes: Those that submitters gave; others are made of the texts.
        neighbour_texts: Of each other set of neighbours the texts. Nothing is trained on them.

    Returns:
        The sets of the run.

    Raises:
        TooFewTexts: No retain text is left, or fewer than MIN_HELDOUT held-out texts.
        TooShort: A forget text has no token that the model predicts.
    """
    length = options.sequence_length
    kept_retain, kept_heldout = (without_forget_text(texts, forget_texts)[0] for texts in (retain_texts, heldout_texts))
    kept_retain, kept_heldout = _left_by_earlier(kept_retain, kept_heldout, earlier_texts)
    retain_excluded, heldout_excluded = len(retain_texts) - len(kept_retain), len(heldout_texts) - len(kept_heldout)
    enough = len(kept_heldout) >= 2 * MIN_HELDOUT
    for_thresholds, for_utility = (kept_heldout[0::2], kept_heldout[1::2]) if enough else (kept_heldout,) * 2
    retain = first_windows(tokenizer, kept_retain, length, max(options.utility_sequences, options.fisher_sequences))
    threshold_sequences = first_windows(tokenizer, for_thresholds, length, options.heldout_sequences)
    if not retain:
        raise TooFewTexts(f"retain: no text is left ({retain_excluded} contained a text to forget)")
    if len(threshold_sequences) < MIN_HELDOUT:
        raise TooFewTexts(f"heldout: {len(threshold_sequences)} usable texts; {MIN_HELDOUT} are needed for thresholds")
    forget = ForgetSet.build(tokenizer, forget_texts, request_ids, length)
    own = list(zip(forget_texts, request_ids, strict=True))
    old = list(zip(earlier_texts, earlier_request_ids, strict=True))
    every_retain = first_windows(tokenizer, spread(kept_retain, MOST_RETAIN), length, MOST_RETAIN)
    sets = (_kept_neighbours(spread(texts, MOST_RETAIN), forget_texts, earlier_texts) for texts in neighbour_texts)
    others = [first_windows(tokenizer, texts, length, MOST_RETAIN) for texts in sets]
    probes = all_probes(tokenizer, probes, own, old, [*kept_retain, *kept_heldout], options.seed)
    return Prepared(
        forget,
        ForgetSet.build(tokenizer, earlier_texts, earlier_request_ids, length),
        kept_retain,
        threshold_sequences,
        first_windows(tokenizer, for_utility, length, options.utility_sequences),
        retain,
        every_retain,
        _neighbours(tokenizer, [every_retain, *others], forget, probes, options.utility_sequences),
        retain_excluded,
        heldout_excluded,
        probes,
    )
