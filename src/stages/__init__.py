"""The stages of a run. Each takes types and returns types; none imports another."""
