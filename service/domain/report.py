"""What the tests of a job found: one typed, versioned model from the compute child to everything that shows it.

The compute child makes a `ChildReport`. The service keeps it as a `JobReport` in the job's row. `schemas.report` has
the one reader and the one writer. A new metric is a field here and a place that shows it.
"""

from dataclasses import dataclass, field

from service.domain.disclosure import Contributors
from service.domain.quantised import QuantisedFinding
from service.domain.states import Outcome

REPORT_VERSION = 2  # 1 was a flat mapping without submitters


@dataclass(frozen=True, slots=True)
class Means:
    """EL and MA, averaged; None where they were redacted."""

    el: float | None
    ma: float | None


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """Held-out EL and MA at one sequence length, as `worker.engine.criterion.Threshold` has them."""

    length: int
    n: int
    count: int
    el_mean: float
    ma_mean: float
    el_p95: float
    ma_p95: float
    ma_p1: float
    el_max: float
    ma_max: float


@dataclass(frozen=True, slots=True)
class Utility:
    """Perplexities before and after the run, and of version 0, and whether the policy's budgets were kept.

    Reports of earlier releases have no values for all versions together, and none of the neighbours.
    The neighbours' values are those of the set that lost most: `neighbour_set` is 0 for the retain file, or the place
    of a name among the model's sets.
    """

    heldout_perplexity_before: float
    heldout_perplexity_after: float
    heldout_ratio: float
    retain_perplexity_before: float
    retain_perplexity_after: float
    retain_ratio: float
    max_ratio: float
    within_budget: bool
    first_heldout_perplexity: float | None = None
    total_ratio: float | None = None
    max_total_ratio: float | None = None
    within_total_budget: bool | None = None
    neighbour_set: int | None = None
    neighbour_ma_before: float | None = None
    neighbour_ma_after: float | None = None
    neighbour_loss_before: float | None = None
    neighbour_loss_after: float | None = None
    max_neighbour_loss: float | None = None
    within_neighbour_limit: bool | None = None


@dataclass(frozen=True, slots=True)
class AttackFinding:
    """What an attack found, as `worker.engine.attacks.scores.AttackResult` has it; None where a number was redacted.

    Attributes:
        effect: "block" if its success keeps a version from being published, "report" otherwise, "off" if not run.
        partial: Its means are over a part of the texts; None in reports of earlier releases.
    """

    name: str
    effect: str
    status: str
    why: str | None
    passed: bool | None
    level: float | None = None
    figure: float | None = None
    control: float | None = None
    auc: float | None = None
    p_value: float | None = None
    texts: int | None = None
    unseen: int | None = None
    partial: bool | None = None


@dataclass(frozen=True, slots=True)
class ProbeCounts:
    """How many prompts were to bring out no secret, in how many samples, and how many did, before and after."""

    asked: int
    samples: int
    answered_before: int
    answered_after: int


@dataclass(frozen=True, slots=True)
class EarlierRequests:
    """Requests of earlier versions that were measured again, and the refs of those that came back.

    `exact` says of how many EL itself was measured, and not only a lower bound of it; None in rows of earlier releases,
    which measured it of all.
    """

    requests: int
    regressed: list[str]
    exact: int | None = None

    @property
    def in_full(self) -> int:
        """Of how many EL itself was measured."""
        return self.requests if self.exact is None else self.exact


@dataclass(frozen=True, slots=True)
class Epoch:
    """The state after one epoch; EL and MA are None where they were redacted."""

    epoch: int
    el: float | None
    ma: float | None
    perplexity: float


@dataclass(frozen=True, slots=True)
class Artefact:
    """What was merged, and in which precision it was evaluated."""

    sequence_length: int
    weights_dtype: str
    evaluated_dtype: str
    adapter_sha256: str | None


@dataclass(frozen=True, slots=True)
class Environment:
    """What the run was computed with; `installed` and `code` are digests."""

    device: str
    python: str
    packages: dict[str, str]
    installed: str
    code: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Aggregates of a job; nothing measured on a single request.

    Attributes:
        outcome: How the tests ended.
        reason: Why they failed, a code.
        earlier: Requests of earlier versions; None if nothing was trained.
        over_forgotten: How many requests fell under the held-out 1st percentile of MA.
        thresholds: Held-out values by sequence length, fixed before training.
        limits: Means that the set must not exceed.
        before: Means over the memorised requests on the parent.
        after: The same on the merged files.
        utility: Perplexities.
        files: path -> sha256 of the files that were measured.
        trajectory: One entry an epoch.
        seconds: Stage -> seconds.
        retain_excluded: Retain texts left out because they contain a forget text.
        heldout_excluded: Held-out texts left out for the same reason.
        artefact: What was merged.
        environment: What it was computed with.
        attacks: What every attack found; none if nothing was trained, or in reports of earlier releases.
        reference: Where the reference of `loss: distil` came from: "base" or "fresh"; None without one.
        probes: Prompts that bring out secrets; None if nothing was trained, or in reports of earlier releases.
        quantised: What became of each quantised copy that the policy asks for.
    """

    outcome: Outcome
    reason: str | None
    earlier: EarlierRequests | None
    over_forgotten: int
    thresholds: list[ThresholdRow]
    limits: Means | None
    before: Means | None
    after: Means | None
    utility: Utility | None
    files: dict[str, str]
    epochs: int
    trajectory: list[Epoch]
    seconds: dict[str, float]
    retain_excluded: int
    heldout_excluded: int
    artefact: Artefact
    environment: Environment
    attacks: list[AttackFinding] = field(default_factory=list)
    reference: str | None = None
    probes: ProbeCounts | None = None
    quantised: list[QuantisedFinding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChildReport:
    """What the compute child says at its end.

    Attributes:
        findings: The aggregates.
        verdicts: Index of a request in the job -> PASS or FAIL.
        memorised: Indices of the requests that the parent had memorised.
        sequences: Index of a request in the job -> its number of token sequences; 0 if no mean is over them.
    """

    findings: Findings
    verdicts: dict[int, str]
    memorised: list[int]
    sequences: dict[int, int]


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job's row keeps.

    Attributes:
        findings: The aggregates.
        memorised: Refs of the requests that the parent had memorised.
        submitters: How many distinct submitters they came from; None in rows from before it was counted.
        fence: The claim under which it was measured; it names the working folder.
        largest_share: The share of their token sequences that one submitter has; None in rows from before it was
            counted.
        version: Of this form.
    """

    findings: Findings
    memorised: list[str]
    submitters: int | None
    fence: int
    largest_share: float | None = None
    version: int = REPORT_VERSION

    @property
    def contributors(self) -> Contributors:
        """Whose texts the means are over."""
        return Contributors(self.submitters, self.largest_share)


@dataclass(frozen=True, slots=True)
class VersionMetrics:
    """What a published version is listed with; None for means that were redacted."""

    limits: Means
    before: Means | None
    after: Means | None
    utility: Utility
    epochs: int
    memorised: int
    submitters: int | None = None
    largest_share: float | None = None
    attacks: list[AttackFinding] = field(default_factory=list)

    @property
    def contributors(self) -> Contributors:
        """Whose texts the means are over."""
        return Contributors(self.submitters, self.largest_share)


@dataclass(frozen=True, slots=True)
class BaselineSummary:
    """What was measured before training, as far as it may leave the compute child.

    Attributes:
        limits: Means that the set must not exceed.
        before: Means over the memorised requests, or over all if none is.
        heldout_perplexity: Of the parent.
        memorised: Indices of the requests that the parent had memorised.
        requests: How many were measured.
        retain_excluded: Retain texts left out because they contain a forget text.
        heldout_excluded: Held-out texts left out for the same reason.
        sequences: Index of a request -> its number of token sequences.
        thresholds: Held-out values by sequence length.
    """

    limits: Means
    before: Means
    heldout_perplexity: float
    memorised: list[int]
    requests: int
    retain_excluded: int
    heldout_excluded: int
    sequences: dict[int, int]
    thresholds: list[ThresholdRow] = field(default_factory=list)
