"""What became of quantised copies of a version."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class QuantisedFinding:
    """What became of a quantised copy of the merged model.

    Attributes:
        scheme: int8, int4, q8_0 or q4_k_m.
        status: RUN if the copy was made and tested, NOT_RUN otherwise.
        why: Why it was not: "no_converter", "unsupported", "failed", or "not_made" by a worker that knows no copies.
        passed: Whether it passes the tests of all requests, earlier ones included; None if it was not tested.
        kept: The modules whose weights stay as they are.
        digests: path -> sha256 of the files that are not the model's own.
    """

    scheme: str
    status: str
    why: str | None
    passed: bool | None
    kept: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
