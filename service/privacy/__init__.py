"""Envelope encryption of submitted texts, key wrapping, and random bytes."""
