"""What a log says of a release after it was made: `unlearnd verify --log`.

1  a trusted key signed the export, and its entries are those of its checkpoint   11 untrusted key, 30 log failure
2  the log begins with the log that the release's proof has                       30 log failure
3  the log holds the release's certificate as that of a version                   30 log failure
4  the version is not withdrawn                                                   40 policy failure

A version is superseded if the log has a later one of the same model that is not withdrawn. That is no failure, and nor
are other people's overdue requests. An entry that cannot be read says nothing.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.audit.canonical import NotCanonical, loads
from service.audit.log_entry import LogEntry, text_in
from service.audit.verification import ExitCode, VerificationError
from service.audit.verify import Verified
from service.audit.verify_log import check_older, open_log, read_promises


@dataclass(frozen=True, slots=True)
class Standing:
    """What the log says of a release that is not withdrawn.

    Attributes:
        superseded_by: The number of the newest version of the model that is not withdrawn; None if this is the newest.
        overdue: A sentence about requests that are past their deadline and have no end; None if there are none.
    """

    superseded_by: int | None
    overdue: str | None


def check_standing(export: Path, verified: Verified, *, today: dt.date | None = None) -> Standing:
    """Run every step on an export and a release that passed its own verification.

    Args:
        export: An exported log, as `verify_log` takes it.
        verified: The verified release; its trusted keys count for the log, too.
        today: The day to which deadlines are compared; by default today, UTC.

    Raises:
        VerificationError: A step failed; the code and the reason say which.
    """
    log = open_log(export, verified.trust)
    if log.checkpoint.size < verified.checkpoint.size:
        raise VerificationError(ExitCode.LOG_FAILURE, "the exported log is older than the release")
    check_older(verified.checkpoint, log)
    history = _History.of(log.entries)
    versions = [version for version in history.versions if version.certificate == verified.certificate]
    if not versions:
        raise VerificationError(ExitCode.LOG_FAILURE, "the log has no version with the release's certificate")
    for version in versions:
        if version.manifest in history.withdrawn:
            reason = f"this version was withdrawn ({history.withdrawn[version.manifest]})"
            raise VerificationError(ExitCode.POLICY_FAILURE, reason)
    model = verified.statement["predicate"]["lineage"]["model"]
    later = [number for number in history.standing(model) if number > versions[0].number]
    return Standing(max(later, default=None), read_promises(log, today).overdue)


@dataclass(frozen=True, slots=True)
class _Version:
    """A version, as the log has it."""

    certificate: str
    manifest: str
    number: int


@dataclass(frozen=True, slots=True)
class _History:
    """The versions in a log.

    Attributes:
        models: job -> the name of its model.
        jobs: certificate -> the job that it is about.
        versions: The published and adopted versions, oldest first.
        withdrawn: manifest -> the reason why the version was withdrawn.
    """

    models: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    versions: list[_Version] = field(default_factory=list)
    withdrawn: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Sequence[bytes]) -> "_History":
        """The versions that these entries tell of."""
        history = cls()
        for data in entries:
            try:
                history._add(loads(data))
            except (NotCanonical, KeyError, TypeError, AttributeError):
                continue
        return history

    def standing(self, model: str) -> list[int]:
        """The numbers of the versions of a model that are not withdrawn.

        The model is that of the certificate's job: a version that was adopted after a restore has a job that the log
        does not know.
        """
        return [
            version.number
            for version in self.versions
            if version.manifest not in self.withdrawn
            and self.models.get(self.jobs.get(version.certificate, "")) == model
        ]

    def _add(self, entry: LogEntry) -> None:
        """Apply an entry.

        Raises:
            KeyError: The entry lacks a member.
            TypeError: The entry, or a member, has another type.
        """
        match entry["kind"]:
            case "job.batched":
                self.models[text_in(entry["job"])] = text_in(entry["model"])
            case "job.certified":
                self.jobs[text_in(entry["certificate"])] = text_in(entry["job"])
            case "version.published" | "version.adopted":
                if type(entry["number"]) is not int:
                    raise TypeError("the number is not a whole number")
                certificate, manifest = text_in(entry["certificate"]), text_in(entry["manifest"])
                self.versions.append(_Version(certificate, manifest, entry["number"]))
            case "version.withdrawn":
                self.withdrawn[text_in(entry["manifest"])] = text_in(entry["reason"])
