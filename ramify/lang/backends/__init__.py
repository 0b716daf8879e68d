"""What executes generations: `base` is the seam, `http` and `local` reach a server or an engine."""
