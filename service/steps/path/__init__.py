"""The seven words: request, batch, unlearn, merge, verify, certify, publish."""
