"""The HTTP API: one file a resource; parse, call one step or query, return."""
