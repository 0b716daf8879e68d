"""Measuring the kernels on the card that is here: what `ramify tune` does, and what it keeps."""
