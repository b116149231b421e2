"""LatentWire: one compressed message that different language models can read."""

__version__ = "0.1.0"
