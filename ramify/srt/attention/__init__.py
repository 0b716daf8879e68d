"""Which keys each query reads, and how often: the step's work list, made from page tables."""
