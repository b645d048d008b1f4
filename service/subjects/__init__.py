"""From an identity to a forget set: corpus readers, keyed hashes of identifiers and words, and the search."""
