"""Settings of the project: read, checked and frozen by :func:`config.schema.load_settings`."""

from config.schema import EncoderSettings, Settings, load_settings

__all__ = ["EncoderSettings", "Settings", "load_settings"]
