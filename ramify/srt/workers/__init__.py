"""The engine as a process: the loop that serves it, its entry point, and the frontend's client."""
