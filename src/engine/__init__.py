"""Tensors, fast. Knows no query ids, no CSV files and no retrieval: usable as a library of its own."""
