"""The dialects of compliance tools: what is said to them, and how it is signed."""
