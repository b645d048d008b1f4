"""Certificates: canonical bytes, manifests, signatures, and the verifier that needs files alone."""
