"""The embedded stack: real PostgreSQL and Valkey and all parts under one supervisor."""
