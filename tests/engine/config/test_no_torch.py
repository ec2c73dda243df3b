"""engine.config does not import torch, so that --help and errors of the command line are fast."""

import pkgutil
import subprocess
import sys

from engine import config

CODE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{name} imports torch"
"""


def test_no_module_of_config_imports_torch() -> None:
    names = [f"engine.config.{module.name}" for module in pkgutil.iter_modules(config.__path__)]
    assert "engine.config.recipe" in names
    done = subprocess.run([sys.executable, "-c", CODE, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
