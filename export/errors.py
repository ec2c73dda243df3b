"""The exceptions of export; engine.cli turns each into one line and exit code 2."""


class ExportError(Exception):
    """What the user can mend: one line that names the file, package or device and the next step."""


class RuntimeUnavailableError(ExportError):
    """A runtime whose package or device is not here, or that cannot compute in the precision asked for."""
