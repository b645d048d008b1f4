"""One case, and the whole matrix: `python -m tests.chaos.run [--seed N] [--stacks 2] [--only WORD] [--table FILE]`.

Prints a line a case as it ends and a table of points x faults at last; exits 0 if every case held.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import support
from tests.chaos.faults import APPLIES, CALLBACK, CASES, PERSON, POINTS, Case, injected
from tests.chaos.machines import helpers
from tests.chaos.stack import TIMEOUT_SECONDS, Chaos

POLICY = {**support.POLICY, "max_wait_seconds": 0, "min_epoch_steps": 4, "max_epochs": 40}
NEEDS_MOUNT = {"disk full", "read-only"}
GIVEN_UP = {("child.verified", "bit flipped"): "candidate_changed"}  # what no further attempt could mend


def run_case(stack: Chaos, case: Case, chance: random.Random) -> list[str]:
    """Register a model, submit a request, do the harm at the point, and look at what is left; sentences about it."""
    with helpers(stack) if case.fault == "frozen" else contextlib.nullcontext():
        problems = _run(stack, case, chance)
    stack.served_again()
    expected = [GIVEN_UP[case.point, case.fault]] if (case.point, case.fault) in GIVEN_UP else []
    if (given_up := stack.retried()) != expected:
        problems.append(f"given up: {given_up}, expected: {expected}")
    return problems + stack.ended() + stack.settled() + stack.other_bytes()


def _run(stack: Chaos, case: Case, chance: random.Random) -> list[str]:
    name, text = f"m-{time.time_ns()}", support.KNOWN[chance.randrange(6)]
    cancelling, approving = case.point.startswith("cancel"), case.point.startswith(("approve", "refuse"))
    person = stack.write_corpus(text) if case.point in PERSON else None
    policy = {**POLICY, "max_wait_seconds": 3600 if cancelling else 0, "approvals": int(approving)}
    paths = [str(stack.model / part) for part in ("model", "retain.jsonl", "heldout.jsonl")]
    stack.running.client.add_model(name, *paths, policy)
    before = stack.submit(name, text)["id"] if cancelling or approving else ""
    if person and case.point.startswith("resolve"):
        stack.add_corpus(name, wait=True)
    first = "publish.commit" if case.point in CALLBACK else case.point
    stack.arm(first)
    with ThreadPoolExecutor(1) as pool:  # the API itself may be what halts
        if person and case.point.startswith("index"):
            stack.add_corpus(name)
        act = {"cancel": (stack.cancel, before), "approve": (stack.approve, before), "refuse": (stack.refuse, before)}
        asked = pool.submit(*act.get(case.point.partition(".")[0], (stack.submit, name, text, person)))
        pid = stack.halted(first)
        if first != case.point:  # callbacks: there is none before that commit, so that it is ours that halts
            stack.arm(case.point)
            stack.release()
            pid = stack.halted(case.point)
        problems = stack.readable() if case.fault == "kill" else []
        with injected(stack, case, pid, chance):
            asked.result(TIMEOUT_SECONDS)
            problems += stack.ended()
            if case.fault == "frozen" and case.point in CALLBACK:
                problems += stack.missing_callbacks(name, 2 if case.point == "delivered.commit" else 1)
            return problems


class Matrix:
    """Cases spread over some stacks, in an order that the seed says."""

    def __init__(self, cases: Sequence[Case], seed: int, *, s3: bool = False) -> None:
        """Run `cases`, with storage in a bucket if `s3`."""
        self.waiting, self.s3 = list(cases), s3
        self.seed, self.outcomes, self.lock = seed, {}, threading.Lock()
        random.Random(seed).shuffle(self.waiting)

    def work(self, place: Path, model: Path) -> None:
        """Take cases until there are none, on a stack at `place`."""
        stack = Chaos(place, model, mount=True, s3=self.s3)
        try:
            while (case := self._next()) is not None:
                if case.fault in NEEDS_MOUNT and not stack.mounted:
                    self._tell(case, "not run: this user may not mount a file system", 0)
                    continue
                began = time.monotonic()
                try:
                    problems = run_case(stack, case, random.Random(f"{self.seed} {case}"))
                except Exception as error:
                    problems = [f"{type(error).__name__}: {error}"]
                    stack.release()  # what one case left halted or held is nothing to the next
                self._tell(case, "; ".join(problems) or "held", time.monotonic() - began)
        finally:
            stack.stop()

    def _next(self) -> Case | None:
        with self.lock:
            return self.waiting.pop() if self.waiting else None

    def _tell(self, case: Case, outcome: str, seconds: float) -> None:
        with self.lock:
            self.outcomes[case] = outcome
            print(f"{len(self.outcomes):4} {seconds:5.1f} s  {case}: {outcome}", flush=True)

    def table(self) -> str:
        """Points x faults in Markdown."""
        faults = list(APPLIES)
        signs = {"held": "held", None: ""}
        lines = ["| | " + " | ".join(faults) + " |", "|---" * (len(faults) + 1) + "|"]
        for point in POINTS:
            outcomes = [self.outcomes.get(Case(point, fault)) for fault in faults]
            cells = [signs.get(o, "not run" if o and o.startswith("not run") else "**FAILED**") for o in outcomes]
            lines.append(f"| {point} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def main() -> int:
    """Run the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000))
    parser.add_argument("--stacks", type=int, default=2, help="at once, each with some of the cases")
    parser.add_argument("--s3", action="store_true", help="storage is a bucket of moto's S3 server")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--table", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    matrix = Matrix([case for case in CASES if arguments.only in str(case)], arguments.seed, s3=arguments.s3)
    print(
        f"{len(matrix.waiting)} cases at {len({c.point for c in matrix.waiting})} points, seed {arguments.seed}",
        flush=True,
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="unlearnd-chaos-") as place, ThreadPoolExecutor(arguments.stacks) as pool:
        Path(place).chmod(0o755)
        model = support.model_folder(Path(place) / "base")
        places = [Path(place) / str(n) for n in range(arguments.stacks)]
        for each in places:
            each.mkdir()
        for done in [pool.submit(matrix.work, each, model) for each in places]:
            done.result()
    held, left_out = (sum(o.startswith(word) for o in matrix.outcomes.values()) for word in ("held", "not run"))
    failed = len(matrix.outcomes) - held - left_out
    print(matrix.table())
    seconds = time.monotonic() - began
    print(f"seed {arguments.seed}: {held} held, {failed} failed, {left_out} not run, {seconds:.0f} s")
    if arguments.table:
        arguments.table.write_text(matrix.table() + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
