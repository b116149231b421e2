"""LoRA on a receiver (Hu et al. 2021, arXiv 2106.09685), through PEFT.

A receiver may carry several adapters by name (one for latents, one for each tuned baseline); one is active at a time.
"""

from latentwire.features.lora.feature import LoRA

__all__ = ["LoRA"]
