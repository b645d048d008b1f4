"""Certificates: canonical bytes, manifests, signatures, and a verifier that reads nothing but files."""
