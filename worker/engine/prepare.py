"""Turns texts into token sequences by their role in a run: forget, retain, thresholds, utility."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.attacks import unseen_needed
from worker.engine.criterion import MIN_HELDOUT
from worker.engine.data import MOST_RETAIN, first_windows, nearest, spread, windows_at, without_forget_text
from worker.engine.errors import TooFewTexts
from worker.engine.forget_set import ForgetSet
from worker.engine.made_probes import all_probes
from worker.engine.options import DISTIL, Options
from worker.engine.probes import Probe, as_answered
from worker.engine.saying import folded, secret_pattern
from worker.engine.types import Tokenizer

KINDS = 2  # of neighbours in a file: like a record, like an answer


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a run reads, as token ids.

    Attributes:
        forget: The forget set.
        earlier: The forget sets of earlier jobs; their request_ids continue after those of the forget set.
        retain_texts: Retain texts that contain no forget text.
        threshold_sequences: Held-out sequences that set the thresholds.
        utility: Held-out sequences for perplexity, disjoint from `threshold_sequences` where there are enough.
        for_reference: Held-out sequences that a reference learns, in neither of the two: what the model takes over from
            it is measured on others.
        spare: Held-out sequences of no other use, as many as an attack that blocks may need for a single request.
        retain: Retain sequences for perplexity and the Fisher estimate.
        all_retain: Retain sequences, many more, for a reference.
        neighbours: Of the retain file, then of each other set of neighbours, the sequences most like a record to
            forget, then those most like one of its probes with its secret; the likest first.
        retain_excluded: Retain texts left out because they contain a forget text.
        heldout_excluded: Held-out texts left out for the same reason.
        probes: Prompts that must not bring out a secret, of this run's requests and of earlier ones.
        run: The name of the run: it draws what is looked at of earlier requests, other ones in each run.
        heldout_texts: Held-out texts that contain no forget text.
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
    run: str = ""
    for_reference: list[list[int]] = field(default_factory=list)
    spare: list[list[int]] = field(default_factory=list)
    heldout_texts: list[str] = field(default_factory=list)

    @property
    def own(self) -> list[object]:
        """What all attempts of a run must have alike: its sets and whom it asks, without the texts of earlier requests.

        A purge changes it only if that text stood in a reference text, or was to be asked for.
        """
        texts = [self.retain_texts, *self.heldout.values(), self.all_retain, self.neighbours]
        return [self.forget.sequences, self.forget.request_ids, *texts, [probe.request for probe in self.probes]]

    @property
    def heldout(self) -> dict[str, list[list[int]]]:
        """The held-out sequences by their use, the name of an attribute."""
        return {name: getattr(self, name) for name in ("threshold_sequences", "utility", "for_reference", "spare")}

    @property
    def used_heldout(self) -> list[list[int]]:
        """The held-out sequences that have a use, each once."""
        return [*self.control, *self.for_reference]

    @property
    def control(self) -> list[list[int]]:
        """The held-out sequences that attacks compare with, if they need no more."""
        return [*self.threshold_sequences, *self.only_utility]

    @property
    def only_utility(self) -> list[list[int]]:
        """The held-out sequences that set no threshold."""
        return [ids for ids in self.utility if ids not in self.threshold_sequences]


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


def _uses(
    kept: Sequence[str], heldout: Sequence[str], options: Options
) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """The kept held-out texts for thresholds, for perplexity, and for a reference. Too few texts serve twice.

    A text has the same use in every job of a loss, by its place in the file.
    """
    places = {text: place for place, text in enumerate(heldout)}
    first = [text for text in kept if places[text] % 2 == 0]
    if len(kept) < 2 * MIN_HELDOUT or len(first) < MIN_HELDOUT:
        return kept, kept, []
    learns = options.loss == DISTIL
    learned = [text for text in kept if learns and places[text] % 4 == 3]
    return first, [text for text in kept if places[text] % (4 if learns else 2) == 1], learned


def _heldout(
    tokenizer: Tokenizer, kept: Sequence[str], heldout: Sequence[str], places: Sequence[int], options: Options
) -> dict[str, list[list[int]]]:
    """The windows of kept held-out texts at some places in them, by their use, as `Prepared.heldout` has them."""

    def some(texts: Sequence[str], count: int) -> list[list[int]]:
        return windows_at(tokenizer, spread(texts, count), options.sequence_length, count, places)

    for_thresholds, for_utility, for_reference = _uses(kept, heldout, options)
    thresholds = some(for_thresholds, options.heldout_sequences)
    utility, learned = (some(texts, options.utility_sequences) for texts in (for_utility, for_reference))
    learned = [ids for ids in learned if ids not in [*thresholds, *utility]]
    used, most = {*map(tuple, [*thresholds, *utility, *learned])}, unseen_needed(1, options.attacks)
    spare = [ids for ids in some(kept, most + len(used)) if tuple(ids) not in used] if most else []
    return {"threshold_sequences": thresholds, "utility": utility, "for_reference": learned, "spare": spare}


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
    run: str = "",
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
        neighbour_texts: Of each other set of neighbours the texts. No version is trained on them.
        run: The name of the run.

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
    pairs = (forget_texts, request_ids), (earlier_texts, earlier_request_ids)
    forget, earlier = (ForgetSet.build(tokenizer, *pair, length) for pair in pairs)
    places = forget.typical_places or earlier.typical_places or [0]  # a purge of earlier texts changes nothing of a run
    unseen = _heldout(tokenizer, kept_heldout, heldout_texts, places, options)
    measured = max(options.utility_sequences, options.fisher_sequences)
    retain = first_windows(tokenizer, spread(kept_retain, measured), length, measured)
    if not retain:
        raise TooFewTexts(f"retain: no text is left ({retain_excluded} contained a text to forget)")
    usable = len(unseen["threshold_sequences"])
    if usable < MIN_HELDOUT:
        raise TooFewTexts(f"heldout: {usable} usable texts; {MIN_HELDOUT} are needed for thresholds")
    own, old = (list(zip(*pair, strict=True)) for pair in pairs)
    sets = (_kept_neighbours(spread(texts, MOST_RETAIN), forget_texts, earlier_texts) for texts in neighbour_texts)
    files = spread(kept_retain, MOST_RETAIN), *sets
    every_retain, *others = (first_windows(tokenizer, texts, length, MOST_RETAIN) for texts in files)
    probes = all_probes(tokenizer, probes, own, old, [*kept_retain, *kept_heldout], f"{options.seed}/{run}")
    return Prepared(
        forget=forget,
        earlier=earlier,
        retain_texts=kept_retain,
        retain=retain,
        all_retain=every_retain,
        neighbours=_neighbours(tokenizer, [every_retain, *others], forget, probes, options.utility_sequences),
        retain_excluded=retain_excluded,
        heldout_excluded=heldout_excluded,
        probes=probes,
        run=run,
        heldout_texts=kept_heldout,
        **unseen,
    )
