"""Text to token ids and back: tokenizer, chat template, incremental decoding, stop strings.

Runs in the frontend: nothing here loads torch.
"""
