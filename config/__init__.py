"""Settings of the project: read, checked and frozen by :func:`config.schema.load_settings`."""

from config.presets import PRESETS, differences, in_place_of_shipped
from config.schema import EncoderSettings, RerankerSettings, Settings, load_settings

__all__ = [
    "PRESETS",
    "EncoderSettings",
    "RerankerSettings",
    "Settings",
    "differences",
    "in_place_of_shipped",
    "load_settings",
]
