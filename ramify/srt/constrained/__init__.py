"""Outputs that satisfy a regex, a schema or a grammar: adapters of the engines that do it."""
