"""`python -m pipeline.cli`: how a run starts its workers."""

from __future__ import annotations

from pipeline.cli import main

if __name__ == "__main__":
    main()
