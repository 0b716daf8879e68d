"""Text to token ids and back: tokenizer, chat template, incremental decoding, stop strings.

Runs in the frontend: nothing here loads torch.
"""

from ramify.srt.tokenization.chat_template import ChatTemplate
from ramify.srt.tokenization.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Tokenizer"]
