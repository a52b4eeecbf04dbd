"""llmlingua 0.2.2, reproduced: the same strings in float32, for many documents at once (docs/reference-fidelity.md)."""
