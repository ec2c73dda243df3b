"""Run `python -m export`. The command reads recipes, so it lives in the engine, the one upward import."""

import sys

from engine.cli.main import main
from engine.exporting.command import command

if __name__ == "__main__":
    sys.exit(main(command))
