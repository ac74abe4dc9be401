"""Outside parties, simulated for development and tests; not shipped in production."""
