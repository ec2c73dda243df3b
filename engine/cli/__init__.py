"""From a command line to a recipe, to values that this machine gives, to an exit code."""
