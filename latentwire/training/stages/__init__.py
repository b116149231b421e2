"""The stages of training, and the fits and statistics that they need."""
