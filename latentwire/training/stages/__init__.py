"""The stages of training, each a function: slot tuning, closed form, end to end."""
