"""Task quality under compression: corpora, methods times ratios times tasks as jobs, and the table of differences.

``tasks`` says what is asked (``gsm8k``, ``bbh``, ``passages``, ``meetings`` make the corpora), ``methods.toml`` by
which methods prompts are shortened, ``matrix`` makes the jobs, ``running`` runs them, ``tables`` prints what came out.
"""
