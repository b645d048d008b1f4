"""Names for JSON values whose members are not fixed: what a platform sends, what a library answers, event data."""

from typing import Any, TypeAlias

Json: TypeAlias = Any
JsonObject: TypeAlias = dict[str, Any]
