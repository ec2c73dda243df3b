"""`python -m export`. The command knows recipes, so it is the engine's; nothing else here looks up to it."""

import sys

from engine.cli.main import main
from engine.exporting.command import command

if __name__ == "__main__":
    sys.exit(main(command))
