"""Names become directories: resolving, unpacking and guarding models."""
