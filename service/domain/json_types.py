"""Types of JSON values whose members are open: bodies of platforms, results of libraries, event data."""

from typing import Any, TypeAlias

Json: TypeAlias = Any
JsonObject: TypeAlias = dict[str, Any]
