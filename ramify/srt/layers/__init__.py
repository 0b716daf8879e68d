"""Pieces that models are built of: weights in packed form, and the calls into the op table."""
