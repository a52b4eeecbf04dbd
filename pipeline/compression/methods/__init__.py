"""Methods of compression beside LLMLingua and LLMLingua-2: each ranks the units of a prompt in its own way."""
