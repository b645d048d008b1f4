"""What the doctor finds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of the installation.

    Attributes:
        check: The name of the check that found the fault.
        problem: What is wrong; holds no personal data.
        remedy: What the operator should do.
    """

    check: str
    problem: str
    remedy: str
