"""What contextmill is measured against, each in an environment and a process of its own."""
