"""Webhooks and dialects of privacy platforms, one file each."""
