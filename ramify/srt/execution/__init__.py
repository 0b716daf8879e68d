"""The doing half: plans become tensors, tensors become tokens. Reading order: model_runner."""
