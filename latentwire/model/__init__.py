"""Sender, readers and receivers, put together."""
