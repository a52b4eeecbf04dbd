"""Parts of ``benchmarks.llmlingua_parity``."""
