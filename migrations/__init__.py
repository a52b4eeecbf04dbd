"""Alembic migrations; installed with the wheel, so that the command can migrate a database without a checkout."""
