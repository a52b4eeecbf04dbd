"""Turns documents into records: readers, stages, accounting and storage. Knows no Celery."""
