"""The embedded stack: PostgreSQL, Valkey and all parts of the service under one supervisor."""
