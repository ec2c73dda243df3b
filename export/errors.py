"""The exceptions of export; engine.cli turns each into one line and exit code 2."""


class ExportError(Exception):
    """A problem the user can fix: one line that names the file, package or device and the next step."""


class RuntimeUnavailableError(ExportError):
    """A runtime whose package or device is missing, or which cannot compute in the requested precision."""
