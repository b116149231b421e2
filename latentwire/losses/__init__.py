"""Loss terms: pure functions of tensors."""
