"""Load the PyPI distribution `kernels`, which shares this package's import name."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

MODULE_NAME = "kernels._of_pypi"


def namesake() -> ModuleType | None:
    """Return the top module of the PyPI distribution `kernels`, or None if it is not installed."""
    if MODULE_NAME in sys.modules:
        return sys.modules[MODULE_NAME]
    try:
        init = Path(str(metadata.distribution("kernels").locate_file("kernels/__init__.py")))
    except metadata.PackageNotFoundError:
        return None
    if not init.is_file() or init.samefile(Path(__file__).with_name("__init__.py")):
        return None
    spec = importlib.util.spec_from_file_location(MODULE_NAME, init)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE_NAME]
        raise
    return module
