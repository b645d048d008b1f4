"""Callbacks: what the service sends when a request's status changes, in each platform's dialect, and how."""
