"""ICAE (Ge et al., ICLR 2024, arXiv 2307.06945): contexts encoded once into memory slots that a frozen model reads."""
