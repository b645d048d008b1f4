"""The compute child's report: the engine's results as a `ChildReport`.

Only aggregates and verdicts leave the child, nothing that was measured on a single request.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from service.domain.quantised import QuantisedFinding
from service.domain.report import (
    Artefact,
    AttackFinding,
    BaselineSummary,
    ChildReport,
    EarlierRequests,
    Environment,
    Epoch,
    Findings,
    Means,
    ProbeCounts,
    ThresholdRow,
    Utility,
)
from service.domain.states import Outcome
from service.files import file_sha256
from worker.engine.baseline import Baseline
from worker.engine.criterion import Judgement, Threshold
from worker.engine.measure import ArtefactReport, distinct_thresholds
from worker.engine.prepare import Prepared
from worker.engine.types import EpochEntry

PACKAGES = ("torch", "transformers", "peft", "safetensors", "unlearnd")


@dataclass(frozen=True, slots=True)
class Run:
    """Facts of a run that the pipeline adds to the engine's results.

    Attributes:
        history: One mapping per epoch.
        seconds: Stage -> seconds.
        files: path -> sha256 of the files that were measured.
        artefact: The merged model.
        device: "cpu" or "cuda".
        earlier_refs: Number of an earlier request, as a string -> its ref.
        effects: Attack -> "block", "report" or "off".
        reference: Where the reference of `loss: distil` came from; None without one.
        quantised: What became of each quantised copy.
    """

    history: Sequence[EpochEntry]
    seconds: dict[str, float]
    files: dict[str, str]
    artefact: Artefact
    device: str
    earlier_refs: dict[str, str]
    effects: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    quantised: Sequence[QuantisedFinding] = ()


def baseline_summary(data: Prepared, baseline: Baseline) -> BaselineSummary:
    """The measurements before training that may leave the child."""
    before = baseline.judge_memorised(data.forget) if baseline.memorised else baseline.before
    return BaselineSummary(
        limits=_limits(before),
        before=_means(before),
        heldout_perplexity=baseline.quality.heldout_perplexity,
        memorised=baseline.memorised,
        requests=len(baseline.before.verdicts),
        retain_excluded=data.retain_excluded,
        heldout_excluded=data.heldout_excluded,
        sequences=_sequences(data, baseline),
        thresholds=_threshold_rows(baseline.thresholds),
    )


def child_report(data: Prepared, baseline: Baseline | None, after: ArtefactReport | None, run: Run) -> ChildReport:
    """The report of a run. `baseline` is None if it measured nothing, `after` is None if it trained nothing."""
    assert after is None or after.attacks, "a test that ended at a miss has no report"
    before = after.before if after else baseline.before if baseline else None
    findings = Findings(
        outcome=_outcome(baseline, after),
        reason=after.reason if after else None,
        earlier=_earlier(after, run.earlier_refs) if after else None,
        over_forgotten=sum(v.over_forgotten for v in after.per_record) if after else 0,
        thresholds=_threshold_rows(baseline.thresholds) if baseline else [],
        limits=_limits(before) if before else None,
        before=_means(before) if before else None,
        after=_means(after.after) if after else None,
        utility=Utility(**asdict(after.utility)) if after else None,
        files=run.files,
        epochs=len(run.history),
        trajectory=[Epoch(int(e["epoch"]), e["el"], e["ma"], e["perplexity"]) for e in run.history],
        seconds=run.seconds,
        retain_excluded=data.retain_excluded,
        heldout_excluded=data.heldout_excluded,
        artefact=run.artefact,
        environment=_environment(run.device),
        attacks=_attacks(after, run.effects) if after else [],
        reference=run.reference,
        probes=ProbeCounts(**asdict(after.probes)) if after else None,
        quantised=list(run.quantised),
    )
    return ChildReport(
        findings,
        _verdicts(baseline, after),
        baseline.memorised if baseline else [],
        _sequences(data, baseline),
    )


def _sequences(data: Prepared, baseline: Baseline | None) -> dict[int, int]:
    """Index of a request -> its sequences, as far as means are over them; 0 if only a probe of it was answered."""
    counts = data.forget.per_request_count()
    only_probes = set(baseline.memorised) - set(baseline.counted) if baseline else set()
    return {request: 0 if request in only_probes else count for request, count in counts.items()}


def _outcome(baseline: Baseline | None, after: ArtefactReport | None) -> Outcome:
    """How the tests ended."""
    if baseline is None:
        return Outcome.REJECTED
    if after is None:
        return Outcome.NOT_MEMORISED
    return Outcome.PASSED if after.passed else Outcome.FAILED


def _verdicts(baseline: Baseline | None, after: ArtefactReport | None) -> dict[int, str]:
    """Index of a request -> PASS or FAIL. Without training, the requests that look unseen pass."""
    if after is not None:
        return {v.request: "PASS" if v.passed else "FAIL" for v in after.per_record}
    return {v.request: "PASS" for v in baseline.before.verdicts if v.looks_unseen} if baseline else {}


def _means(judgement: Judgement) -> Means:
    return Means(judgement.el, judgement.ma)


def _limits(judgement: Judgement) -> Means:
    return Means(judgement.el_limit, judgement.ma_limit)


def _threshold_rows(thresholds: Sequence[Threshold]) -> list[ThresholdRow]:
    return [ThresholdRow(**asdict(threshold)) for threshold in distinct_thresholds(thresholds)]


def _earlier(after: ArtefactReport, refs: dict[str, str]) -> EarlierRequests:
    """Requests of earlier versions that were measured again, and the refs of those that fail now."""
    return EarlierRequests(
        len(after.earlier), [refs[str(v.request)] for v in after.earlier if not v.passed], after.earlier_exact
    )


def _attacks(after: ArtefactReport, effects: Mapping[str, str]) -> list[AttackFinding]:
    """What every attack found, and what its success means."""
    return [AttackFinding(effect=effects.get(a.name, "off"), **asdict(a)) for a in after.attacks]


def _environment(device: str) -> Environment:
    """The device, Python, packages and code of this run."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return Environment(device, platform.python_version(), packages, _installed_digest(), _code_digest())


def _installed_digest() -> str:
    """sha256 over the name and version of every installed package, one per line."""
    distributions = importlib.metadata.distributions()
    lines = {f"{package.metadata['Name']}=={package.version}\n".lower() for package in distributions}
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _code_digest() -> str:
    """sha256 over the source files of `service` and `worker`: digest and path of each file, one per line."""
    root = Path(__file__).parents[2]
    paths = sorted(path for package in ("service", "worker") for path in (root / package).rglob("*.py"))
    lines = (f"{file_sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
