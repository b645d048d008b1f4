"""The HTTP API: one file a resource. An endpoint parses its input, calls one step or query, and returns."""
