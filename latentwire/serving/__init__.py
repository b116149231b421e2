"""Sender and receivers as an HTTP service."""
