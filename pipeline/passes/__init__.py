"""Forward passes without padding, compiled, on a GPU in half precision: compression reads, generation writes."""
