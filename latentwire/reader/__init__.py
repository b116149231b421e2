"""From latents to what a receiver reads: slots in every layer, or vectors at its input."""
