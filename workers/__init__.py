"""Celery around the pipeline: the only package that imports Celery."""
