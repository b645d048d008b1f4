"""policy: change how a model is unlearned. Every policy that a model had stays on record."""

import hashlib
from uuid import UUID

from service.audit.canonical import dumps
from service.audit.certificate import certified_parameters
from service.audit.wording import problem_in
from service.bootstrap import Services
from service.db import log_entries, models
from service.domain.errors import Conflict, Invalid
from service.domain.json_types import JsonObject


def set_policy(services: Services, name: str, policy: JsonObject, expected_version: int, api_key_id: UUID) -> None:
    """Replace a model's policy, and log the digest of the new one. A job keeps the policy that it was made with.

    The policy that is in force already stays, so a repeated call changes nothing.

    Raises:
        NotFound: The model does not exist.
        Conflict: The policy in force is not `expected_version`: somebody changed it meanwhile.
        Invalid: A certificate may not contain the policy.
    """
    if problem_in(policy):
        raise Invalid("A certificate must not contain this policy.", field="policy")
    with services.db.transaction() as session:
        model = models.existing(session, name, lock=True)
        if model.policy == policy:
            return
        if model.policy_version != expected_version:
            message = f"The policy in force is version {model.policy_version}; look at it, and change that one."
            raise Conflict(message, field="policy_version")
        models.add_policy(session, model, policy, model.policy_version + 1, api_key_id)
        digest = hashlib.sha256(dumps(certified_parameters(policy))).hexdigest()
        number, key = model.policy_version, str(api_key_id)
        log_entries.append(session, "model.policy_changed", model=name, number=number, parameters=digest, key=key)
    services.queue.wake("batch", model.id)  # its window may be shorter now
