"""`unlearnd worker --drain`: take jobs by their deadlines until none is left, then end. It needs no broker.

For schedulers that start a process for the work that waits, as Kubernetes does with KEDA.
"""

import signal

from service.bootstrap import Services
from service.config import Settings
from service.db import claims, rechecks
from service.domain.states import COMPUTE_STAGES
from service.explain import explained
from service.observability import logging, tracing
from worker.app import check_sandbox, computes, get_services, presence, slots, stopping
from worker.tasks import compute

LOOK_AGAIN_SECONDS = 0.5


def main() -> None:
    """Work until nothing is left, or until SIGTERM: then the job is handed back."""
    logging.configure(explained(Settings).log_level)
    computes.set()
    check_sandbox()
    services = explained(get_services)
    tracing.configure("compute")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    slots.deal(1)
    presence.begin(services, slots)
    try:
        drain(services)
    finally:
        presence.end()
        services.close()


def drain(services: Services) -> None:
    """Work until nothing is left. A job that somebody has locked for a moment is something."""
    while True:
        compute(services)
        with services.db.reading() as session:
            memory = slots.all[0].memory
            waits = claims.is_any(session, COMPUTE_STAGES, memory) or rechecks.is_any(session, memory)
        if not waits or stopping.wait(LOOK_AGAIN_SECONDS):
            return


if __name__ == "__main__":
    main()
