"""Steps of a request, in order: request, batch, unlearn, merge, verify, certify, publish."""
