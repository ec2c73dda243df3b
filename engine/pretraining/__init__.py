"""Train the networks in assets/: the teachers and the priors."""

from typing import Literal

Part = Literal["teacher", "lenet-5", "priors"]
"""What can be trained by itself."""
