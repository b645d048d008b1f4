"""A shard of a recheck, in the worker: its child measures earlier requests, and what came back is stored."""

from service.bootstrap import Services
from service.collected import is_collected
from service.db import rechecks
from service.domain.errors import PermanentJobError
from service.domain.job_input import JobInput
from service.shard_lease import ShardLease
from service.steps.path.compute_input import check_model_files, shard_input
from worker.steps.run import Child, ChildDied, ChildKilled, child_messages, working_child


def run_shard(services: Services, lease: ShardLease) -> None:
    """Measure a claimed shard to its end, or hand it back.

    Raises:
        PermanentJobError: A file was changed, the version's weights were removed, or the child sent what it may not.
        LostLease: The lease was lost.
    """
    with services.db.transaction() as session:
        shard = rechecks.owned(session, lease.job_id, lease.fence)
        version, model = shard.recheck.version, shard.recheck.model
        is_empty = rechecks.is_empty(session, shard)
    if is_empty:
        lease.store(0, [])  # all were purged meanwhile
        return
    if version.withdrawn_at is not None:
        raise PermanentJobError("version_gone")
    if is_collected(services.storage, version):
        services.queue.wake("rebuild", version.id)
        lease.hand_back(delay_seconds=services.settings.sweep_seconds)
        return
    check_model_files(services, model, [version], [model.retain, model.heldout])
    with working_child(services, lease, shard_input) as (child, inputs):
        _follow(child, lease, inputs)


def _follow(child: Child, lease: ShardLease, inputs: JobInput) -> None:
    """Read what a child sends until it has measured, has failed, or this process stops."""
    try:
        for message in child_messages(child, lease):
            match message:
                case {"type": "rechecked", "measured": int(measured), "came_back": list(refs)}:
                    if not set(refs) <= set(inputs.earlier_refs.values()):
                        raise PermanentJobError("child_message")
                    lease.store(measured, refs)
                    return
                case {"type": "error", "code": code, "permanent": permanent}:
                    lease.fail(code, permanent=permanent)
                    return
    except ChildKilled:
        lease.lose("child_killed")
    except ChildDied:
        lease.fail("child_died")
    else:
        lease.hand_back()
