"""Is it better, and how to make it so."""
