"""Which engine compiles a grammar: by name, or `auto`."""
