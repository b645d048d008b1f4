"""What the compute child is given: it goes through a pipe, never to a disk."""

from dataclasses import dataclass

from service.domain.json_types import JsonObject


@dataclass(frozen=True, slots=True)
class JobInput:
    """Everything that the compute stages of one job need, texts included.

    Attributes:
        work: The attempt's working folder.
        parent: The folder of the parent model.
        retain: The file of retain texts.
        heldout: The file of held-out texts.
        policy: The model's policy when the batch was sealed.
        texts: Texts to forget.
        request_ids: For each of them the index of its request in the job.
        earlier_texts: What earlier versions unlearned, as far as it is still kept.
        earlier_request_ids: For each of them a number of its request; they go on from the job's own.
        earlier_refs: That number, as a string, -> the request's ref.
        run: A digest of the inputs; a checkpoint of other inputs is not resumed.
    """

    work: str
    parent: str
    retain: str
    heldout: str
    policy: JsonObject
    texts: list[str]
    request_ids: list[int]
    earlier_texts: list[str]
    earlier_request_ids: list[int]
    earlier_refs: dict[str, str]
    run: str
