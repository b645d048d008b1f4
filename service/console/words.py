"""The words of the console: codes of the API in plain English, and dates as people write them."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from markupsafe import Markup, escape

from service.audit import render

STATUSES = {
    "pending": "Waiting",
    "batched": "In a job",
    "unlearning": "Being unlearned",
    "verifying": "Being tested",
    "publishing": "Being published",
    "completed": "Completed",
    "not_memorised": "Not memorised",
    "cancelled": "Cancelled",
    "rejected": "Rejected",
    "failed": "Failed",
}
MEANINGS = {
    "pending": "It waits for the next job of its model.",
    "batched": "A job has taken it and waits for a worker.",
    "unlearning": "A worker trains the model to stop producing the texts.",
    "verifying": "The changed model is being measured.",
    "publishing": "The result is being signed and published.",
    "completed": "A new version of the model was tested and published.",
    "not_memorised": "The model already treats the texts like texts that it has never seen. It was not changed.",
    "cancelled": "The submitter cancelled it.",
    "rejected": "It cannot be fulfilled, and was closed.",
    "failed": "No version was published. Somebody must retry it, or resolve it in another way.",
}
NOTHING_FOUND = "The person was looked up in the training data. The model was not changed."
WAITS = {
    "resolve": "the person is being looked up in the training data",
    "approval": "somebody must approve the texts that were found",
}
STAGES = {
    "queued": "Queued",
    "unlearn": "Unlearn",
    "merge": "Merge",
    "verify": "Verify",
    "certify": "Certify",
    "publish": "Publish",
    "done": "Done",
    "quarantined": "Given up",
}
LAWS = {"gdpr": "GDPR", "ccpa": "CCPA", "other": "another law"}
VERDICTS = {**render.VERDICTS, "NOT_PUBLISHED": "passed its own tests, but its job published nothing"}
REASONS = {
    "already_passes": "The model already treats the texts like texts that it has never seen.",
    "not_memorised": "The model already treats the texts like texts that it has never seen.",
    "nothing_found": "Nothing about this person was found in the training data.",
    "probes_not_asked": "Nothing about this person was found, so that the prompts of the request were not asked. "
    "Submit a text with them.",
    "too_short": "The text is too short to be measured.",
    "too_long": "The texts are longer than the model's policy allows (max_request_sequences).",
    "too_generic": "The text is so general that nothing can be measured on it.",
    "too_many_matches": "The identifier matches so many records that it is hardly one person's. "
    "Submit the texts instead.",
    "criterion_missed": "After training, the model still produced more of the texts than of text that it "
    "has never seen.",
    "probe_answered": "A question or another prompt still brought out what it must not.",
    "utility_budget_exceeded": "The model would have lost too much of its general ability. The policy's "
    "max_perplexity_ratio is the limit.",
    "neighbours_lost": "The model would have lost too much of what is most like the texts. The policy's "
    "max_neighbour_loss is the limit.",
    "total_utility_budget_exceeded": "All versions together would have lost too much of the model's general ability. "
    "A retry does not help: train the model anew, or raise max_total_perplexity_ratio.",
    "came_back": "A recheck found that a version remembers it again. The next job unlearns it.",
    "version_withdrawn": "The version that had fulfilled it was withdrawn.",
    "version_gone": "The version was withdrawn before it was measured.",
    "earlier_request_regressed": "The model would have produced texts of an earlier request again.",
    "attack_succeeded": "An attack that the policy lets block succeeded.",
    "attack_not_run": "An attack that the policy lets block could not be run. There may be too few held-out texts for "
    "so few requests.",
    "no_reference": "Distillation needs a model that never saw the texts: register the base, or choose another loss.",
    "not_causal": "What the model says of a word depends on the words after it, so nothing can be measured on it.",
    "workers_lost": "The job has lost too many workers without any progress in between.",
    "child_killed": "The compute process was killed again and again. There may be too little memory.",
    "child_died": "The compute process ended without a word.",
    "database_away": "The database failed again and again.",
    "stalled": "The job made no step for too long.",
    "cancelled": "An operator cancelled the job.",
    "split": "It is tried again in a smaller job.",
    "restored": "The database was restored from a backup.",
    "no_corpora": "The model has no training data registered in which people can be looked up.",
    "corpus_failed": "A corpus of the model could not be indexed.",
    "corpus_changed": "A corpus of the model is not what it was when it was indexed.",
    "corpus_away": "A corpus of the model cannot be opened.",
    "corpus_outside_roots": "A corpus of the model is no longer in a folder from which corpora may be read.",
    "not_the_subject": "The approver says that the texts are not about this person.",
    "identity_not_proven": "The approver says that the identity was not proven.",
    "not_covered": "The law does not cover it, in the words of who decided.",
    "handled_otherwise": "It was dealt with in another way.",
    "withdrawn": "It was taken back.",
    "duplicate": "It is the same as another one.",
    "mistake": "It was submitted by mistake.",
    "identity_checked": "The approver has compared the texts with what is known of the person.",
    "person_confirmed": "The person has confirmed that the texts are theirs.",
    "other": "For another reason.",
    "model_too_large": "No settings let the job fit into the worker's memory.",
    "parent_changed": "A file of the model in storage is not the one that was published.",
    "candidate_changed": "The merged files are not the files that were measured.",
    "heldout_known": "The model knows its held-out texts, or numbers in them, so they set no limit.",
    "heldout_overlap": "The model's held-out texts are also retain texts.",
    "heldout_too_few": "Too few held-out texts are as long as the texts to forget for the attacks that block. Beside "
    "two requests far fewer are needed.",
}
MODELS = ("read", "submit")  # one of these scopes is needed to see models
REQUESTS = (*MODELS, "approve")
ALL = ("read", "approve", "audit")
NAVIGATION = (  # path, name, scopes of which one is needed; none: everybody
    ("/console", "Today", ALL),
    ("/console/requests", "Requests", REQUESTS),
    ("/console/decisions", "Decisions", ("approve",)),
    ("/console/jobs", "Jobs", (*ALL, "submit")),
    ("/console/models", "Models", MODELS),
    ("/console/records", "Records", (*ALL, "submit")),
    ("/console/settings", "Settings", ()),
)
SETTLED = ("completed", "not_memorised", "cancelled", "rejected")
ATTACKS = {  # questions that a layman would ask
    "el": "Does the model continue a text if it is given a part of it?",
    "ma": "Does it predict a text piece by piece?",
    "sampled": "Does it say a text in one of many random answers?",
    "extraction_strength": "Does a small part of a text bring out the rest?",
    "membership_loss": "Can the texts be told from texts that it has never seen (by likelihood)?",
    "membership_min_k": "Can they be told from unseen texts (by the least likely words)?",
    "membership_min_k_pp": "Can they be told from unseen texts (by the least likely words, normalised)?",
    "exposure": "Is a person's number likelier than others of the same form?",
    "exposure_dates": "Is a person's date of birth likelier than others of the same form?",
    "exposure_addresses": "Is a person's home address likelier than those of other people?",
    "exposure_emails": "Is a person's e-mail address likelier than others that their name could have?",
    "prompts": "Do typing errors, another case, fewer words or a cut beginning bring it out?",
    "quantised": "Does it come back when the weights are rounded?",
    "relearned": "Does it come back after a little harmless training?",
}
NUMBERS = {  # what the number of an attack is
    "sampled": "the chance that at least one of 1,000 answers says ten pieces of it in a row; 0.3 is 30 in 100",
    "extraction_strength": "the share that comes out",
    **dict.fromkeys(("exposure", "exposure_dates"), "the share of made-up ones that are less likely; 0.5 is chance"),
    **dict.fromkeys(
        ("exposure_addresses", "exposure_emails"),
        "the share of others that are less likely; compare with people it never saw",
    ),
    "prompts": "the share of its second half that is predicted",
    "quantised": "the share that is predicted then",
    "relearned": "the share that is predicted then",
}
SCOPES = {
    "submit": "submit requests, and see its own",
    "read": "see all requests, jobs and versions",
    "preview": "look up what a person would match",
    "download": "download versions",
    "audit": "see exact numbers and the register of downloads",
    "approve": "approve or reject what was found",
    "admin": "everything",
}
SETTINGS = {  # what settings are about -> how their variables begin
    "Webhooks": tuple(f"UNLEARND_{name}" for name in ("CALLBACK", "ALERT")),
    "Connected tools": tuple(
        f"UNLEARND_{name}"
        for name in ("DATAGRAIL", "FIDES", "IDENTIFIER", "OAUTH", "OIDC", "PROCESSOR", "PUBLIC", "TRANSCEND")
    ),
    "All settings": ("UNLEARND_",),
}
MATCHES = {
    "identifier": "holds an identifier of the person",
    "near_copy": "is nearly the same text as one that was found",
    "similar": "is similar to a text that was submitted",
    "name": "holds the person's name",
    "submitted": "was submitted",
}


def meaning(code: str, why: str | None) -> str:
    """What a status means for a request that ended for this reason."""
    return NOTHING_FOUND if why == "nothing_found" else MEANINGS[code]


def status(code: str) -> str:
    """A status in words."""
    return STATUSES.get(code, code)


def reason(code: str | None) -> str:
    """A reason in a sentence; a code that has none stays a code."""
    return REASONS.get(code or "", f"The reason is {code}." if code else "")


def law(code: str) -> str:
    """A law by its usual name."""
    return LAWS.get(code, code)


def stage(code: str) -> str:
    """A stage of a job in words."""
    return STAGES.get(code, code)


def _time(value: object) -> datetime:
    """A time of an answer of the API."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def moment(value: object) -> datetime:
    """A time of an answer of the API, in UTC."""
    return _time(value).astimezone(UTC)


def written(day: date) -> str:
    """A day, or the day of a time, as people write it."""
    return f"{day.day} {day:%B %Y}"


def when(value: object) -> Markup:
    """A time to the minute, UTC; a dash if there is none."""
    if value is None:
        return Markup("—")
    at = moment(value)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at.day} {at:%b %Y, %H:%M}")


def day(value: object) -> Markup:
    """The day of a time, UTC; a dash if there is none."""
    if value is None:
        return Markup("—")
    at = moment(value)
    return Markup('<time datetime="{}">{}</time>').format(f"{at:%Y-%m-%d}", written(at))


def left(value: object) -> str:
    """How long it is until a deadline, or how long it is past."""
    gap = _time(value) - datetime.now(UTC)
    days = abs(gap) // timedelta(days=1)
    span = f"{days} day{'s' * (days != 1)}" if days else "less than a day"
    return f"{span} overdue" if gap < timedelta() else f"{span} left"


def is_late(value: object) -> bool:
    """Whether a deadline is past."""
    return _time(value) < datetime.now(UTC)


def number(value: object, digits: int = 3) -> str:
    """A measured number; a dash if it is not shown."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "—"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def size(value: int) -> str:
    """A size in bytes, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000  # type: ignore[assignment]  # a float from here on
    return f"{value:.1f} TB"


def marked(text: str, words: list[str]) -> Markup:
    """A text in which these words, as they are written there, are marked."""
    result, rest = Markup(), text
    while rest:
        hits = [(rest.find(word), word) for word in words if word]
        places = [(place, word) for place, word in hits if place >= 0]
        if not places:
            break
        place, word = min(places, key=lambda pair: (pair[0], -len(pair[1])))
        result += escape(rest[:place]) + Markup("<mark>{}</mark>").format(rest[place : place + len(word)])
        rest = rest[place + len(word) :]
    return result + escape(rest)


FILTERS: dict[str, Callable[..., object]] = {
    "status": status,
    "meaning": meaning,
    "reason": reason,
    "law": law,
    "stage": stage,
    "when": when,
    "date": lambda text: written(date.fromisoformat(text)),
    "day": day,
    "left": left,
    "is_late": is_late,
    "number": number,
    "size": size,
    "marked": marked,
}
