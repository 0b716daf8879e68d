"""One tree of every computed prefix, over pages of KV cache. See README.md beside this file."""
