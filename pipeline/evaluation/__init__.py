"""Answers against references: what they say (the ``evaluate`` stage), intervals, and jobs beside each other."""
