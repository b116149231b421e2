"""What is made of results that lie in files: no model and no torch."""
