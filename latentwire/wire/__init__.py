"""The wire: latents as bytes, and back. No torch. docs/wire.md describes the bytes."""
