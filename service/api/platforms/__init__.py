"""Webhooks and protocols of privacy platforms, one file each."""
