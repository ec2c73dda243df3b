"""What every command needs: its arguments, a resolved recipe and an exit code."""
