"""Sender and receivers as an HTTP service or in vLLM, and a corpus as a data set of messages."""
