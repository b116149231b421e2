"""The wire: latents as bytes, and back. `header` needs no torch."""
