"""The runtime: messages, scheduling, execution, models. See README.md beside this file."""
