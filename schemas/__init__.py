"""What crosses a boundary: job files, documents, record and table schemas, settings.

Imports nothing of ours and never torch, transformers or celery, so that a command line or a notebook can read a job,
its rows and its settings in well under a second.
"""
