"""Labels, training and evaluation of the bundled LLMLingua-2 head (``benchmarks.minilm_head``)."""
