"""Where documents come from and results go: readers, Parquet parts, the database."""
