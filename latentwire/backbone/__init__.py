"""Frozen language models: loading them, and where their keys and values come from."""
