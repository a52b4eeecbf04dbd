"""Prompt -> shorter prompt. Importing this loads no torch."""
