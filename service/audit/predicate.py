"""The types of a certificate's statement, as its schema describes them.

Numbers are decimal strings. A statement that was read from a file has these types only once it fits its schema.
"""

from typing import NotRequired, TypedDict

from service.audit.log_entry import LogState
from service.domain.json_types import JsonObject
from service.domain.reference_texts import Overlap


class Lineage(TypedDict):
    """The version and its parent; `version` and `supersedes` are None if nothing was published."""

    model: str
    version: int | None
    parent_version: int
    parent_manifest: str
    parent_certificate: str | None
    supersedes: int | None


class LogReference(TypedDict):
    """The log, its state before the run, and the proof that it held the thresholds by then."""

    origin: str
    before: LogState
    thresholds: str


class Artefacts(TypedDict):
    """What was merged, in which precision it was evaluated, and whether it was published."""

    merge: str
    published: bool
    sequence_length: int
    weights_dtype: str
    evaluated_dtype: str
    adapter_sha256: str | None


class ForgetSet(TypedDict):
    """The size of the forget set, in ranges, and the commitment to it; schema 1 has no submitters.

    `records` are the submitted ones. Earlier releases of the service counted those that a search found, too.
    """

    commitment_root: str
    requests: int
    records: str
    submitters: NotRequired[str]


class CertifiedRequest(TypedDict):
    """The line of one request."""

    ref: str
    commitment: str
    verdict: str
    reason: str | None
    supplements: str | None


class CertifiedTexts(TypedDict):
    """The retain or held-out texts, or a named set of neighbours."""

    role: str
    sha256: str
    records: int


class Method(TypedDict):
    """The method and its parameters; a policy may have any parameter.

    `reference` says where the reference of a distillation came from: "base" or "fresh". `base` is the digest of the
    folder of the model that it began from. Schemas 1 to 3 have neither.
    """

    name: str
    source: str
    reference: NotRequired[str | None]
    base: NotRequired[str | None]
    parameters: JsonObject


class CertifiedMeans(TypedDict):
    """Mean EL and mean MA, or `SUPPRESSED` each."""

    el: str
    ma: str


class Limits(TypedDict, total=False):
    """The limits of the means; empty if nothing was measured."""

    el: str
    ma: str


class CertifiedUtility(TypedDict):
    """Perplexities of version 0, before and after the run, and whether the policy's budgets were kept.

    Schemas 1 and 2 had no budget for all versions together, schemas 1 to 3 no limit for the neighbours: retain text,
    and texts of each listed set, that are most like the forgotten. These values are None in a job of that time.
    """

    heldout_perplexity_before: str
    heldout_perplexity_after: str
    heldout_ratio: str
    retain_perplexity_before: str
    retain_perplexity_after: str
    retain_ratio: str
    max_ratio: str
    within_budget: bool
    first_heldout_perplexity: NotRequired[str | None]
    total_ratio: NotRequired[str | None]
    max_total_ratio: NotRequired[str | None]
    within_total_budget: NotRequired[bool | None]
    max_neighbour_loss: NotRequired[str | None]
    within_neighbour_limit: NotRequired[bool | None]


class CertifiedEarlier(TypedDict):
    """How many requests of earlier versions were measured again, and the refs of those that came back.

    `exact`: of how many EL itself was measured. Certificates of earlier releases leave it out: it was measured of all.
    """

    requests: int
    regressed: list[str]
    exact: NotRequired[int]


class CertifiedProbes(TypedDict):
    """How many prompts were to bring out no secret, in how many samples each, and how many did, before and after.

    Counts are ranges. Schemas 4 to 6 have exact ones.
    """

    asked: int | str
    samples: int
    answered_before: int | str
    answered_after: int | str


class Attack(TypedDict):
    """An attempt to extract the texts, or to tell that the model knew them: run, or not run and why.

    Schemas 1 to 3 have name, status and result. The two of the criterion have no figures: their limits stand beside the
    means. `passed` is the result as a truth value; None if it was not run.
    `figure` is the mean score of the texts, `control` that of held-out text under the same attack, `auc` the chance
    that a text scores higher than a held-out one. They are `SUPPRESSED` as means are. `level` is that of the test.
    """

    name: str
    status: str
    result: str | None
    passed: NotRequired[bool | None]
    effect: NotRequired[str]
    why: NotRequired[str | None]
    figure: NotRequired[str | None]
    control: NotRequired[str | None]
    auc: NotRequired[str | None]
    level: NotRequired[str | None]
    unseen: NotRequired[int]


class Quantised(TypedDict):
    """A quantised copy of the model, and whether it passes the tests of all requests, earlier ones included.

    `kept` are the modules whose weights stay as they are. `files` are those that are no copies of the model's; the
    release does not hold them, because `unlearnd quantise` makes them of it.
    """

    scheme: str
    status: str
    result: str | None
    why: str | None
    kept: list[str]
    files: "list[CertifiedFile]"


class Verification(TypedDict):
    """The tests, their thresholds by range of lengths, and their results.

    Schemas 1 to 3 have no probes, schemas 1 to 5 no quantised copies.
    """

    criterion: str
    evaluated: str
    thresholds: list[dict[str, str | int]]
    limits: Limits
    before: CertifiedMeans | None
    after: CertifiedMeans | None
    suppressed_under: int
    heldout_overlap: NotRequired[Overlap | None]
    utility: CertifiedUtility | None
    earlier: CertifiedEarlier | None
    probes: NotRequired[CertifiedProbes | None]
    attacks: list[Attack]
    quantised: NotRequired[list[Quantised]]


class CertifiedEpoch(CertifiedMeans):
    """The metrics after one epoch."""

    epoch: int
    heldout_perplexity: str


class Training(TypedDict):
    """The number of epochs, the seconds of each stage, and the metrics after each epoch."""

    epochs: int
    seconds: dict[str, str]
    trajectory: list[CertifiedEpoch]


class CertifiedEnvironment(TypedDict):
    """What the run was computed with; `installed` and `code` are digests."""

    device: str
    python: str
    packages: dict[str, str]
    installed: str
    code: str


class Predicate(TypedDict):
    """What a certificate states."""

    title: str
    schema: str
    certificate_id: str
    issuer: str
    issued_at: str
    scope: str
    lineage: Lineage
    log: LogReference
    artefacts: Artefacts
    forget_set: ForgetSet
    requests: list[CertifiedRequest]
    corpora: list[CertifiedTexts]
    method: Method
    verification: Verification
    training: Training
    environment: CertifiedEnvironment
    overall: str


class Digest(TypedDict):
    """The digest of a file."""

    sha256: str


class CertifiedFile(TypedDict):
    """A file that the certificate covers."""

    name: str
    digest: Digest


class Statement(TypedDict):
    """An in-toto Statement about files."""

    _type: str
    subject: list[CertifiedFile]
    predicateType: str  # in-toto's name
    predicate: Predicate
