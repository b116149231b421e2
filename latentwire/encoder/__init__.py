"""Text to latents: windows of a sender's tokens, and what is computed from them."""
