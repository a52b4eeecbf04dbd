"""Let the target model answer: on this machine with transformers, or behind an OpenAI-compatible endpoint."""
