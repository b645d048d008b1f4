"""The demo: fictional people in a small model, and the whole path over HTTP."""
