"""What leaves the compute child."""

from dataclasses import asdict

from service.domain.report import Artefact
from worker.engine.forget_set import ForgetSet
from worker.engine.prepare import Prepared
from worker.steps.report import Run, child_report


def test_the_report_counts_the_sequences_of_each_request():
    """The service needs them to see whether a mean is mostly about one submitter; no length of a text is told."""
    forget, nothing = ForgetSet([[1, 2], [3, 4, 5], [6, 7]], [0, 1, 1]), ForgetSet([], [])
    data = Prepared(forget, nothing, [], [], [], [], [], [], 0, 0)
    report = child_report(data, None, None, Run([], {}, {}, Artefact(200, "float32", "float32", None), "cpu", {}))
    assert report.sequences == {0: 1, 1: 2}
    assert set(asdict(report)) == {"findings", "verdicts", "memorised", "sequences"}
