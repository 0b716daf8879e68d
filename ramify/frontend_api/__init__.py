"""HTTP and the command line: OpenAI-compatible and native routes. Start at README.md here."""
