"""Measuring a system on held-out questions, against every baseline."""
