"""From an identity to a forget set: reading corpora, and keyed hashes of what a person is found by."""
