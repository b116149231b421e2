"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): learned keys and values in every layer.

Unlike the slots of a message they are the same for every message. Ours stand between the message and the question, so
that the message's slots need not move; PEFT's version cannot be used, because it refuses `inputs_embeds` and takes the
cache for itself.
"""

from latentwire.features.prefix.feature import Prefix, starting_slots

__all__ = ["Prefix", "starting_slots"]
