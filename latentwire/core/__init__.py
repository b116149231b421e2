"""Errors, atomic writes, hashes, seeds and run manifests. No torch."""
