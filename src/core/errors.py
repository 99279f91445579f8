"""The one error type for everything that a user can mend."""


class UserError(Exception):
    """Bad input, a bad setting or a stale artefact: shown as one line, without a traceback, exit code 2.

    The message names the file, row or setting, the value found, the value expected, and the fix.
    """


class StaleArtifactError(UserError):
    """An artefact is missing, truncated, or was made from other inputs, models or settings."""


class ModelUnavailableError(UserError):
    """A model name could not be turned into a directory with a model in it."""


class DiskFullError(UserError):
    """A disk has no room for what is to be written; what was there before is as it was."""


class DataFolderInUseError(UserError):
    """Another process works on the data folder."""
