"""Models: what a config.json says, and the network that it describes.

`config` reads the four supported architectures into one `ModelConfig`; `rope` holds the formulas
of rotary positions.
"""
