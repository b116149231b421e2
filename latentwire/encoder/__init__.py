"""Text to latents: the encoders, the windows of a text, and the refiner of latents."""
