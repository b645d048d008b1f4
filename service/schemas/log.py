"""Bodies of the transparency log endpoints."""

from pydantic import BaseModel, Field


class LogEntry(BaseModel):
    """An entry of the transparency log."""

    index: int
    entry: str = Field(description="the canonical JSON that is hashed, in base64")


class LogProof(BaseModel):
    """The hashes of an inclusion or consistency proof, in base64."""

    path: list[str]


class WitnessedCheckpoint(BaseModel):
    """A checkpoint that a witness has cosigned."""

    witness: str = Field(description="the name in its verifier key")
    checkpoint: str = Field(description="the signed note, with the cosignature")
