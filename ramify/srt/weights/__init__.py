"""From a model name to a folder of files, and from the folder to tensors.

`source.prepare` finds, fetches or converts a model and loads no torch; `reader.open_source` reads
its tensors.
"""
