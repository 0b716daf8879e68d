"""Plain torch twins of all operations: the specification, the oracle, and the fallback."""
