"""Train the networks in assets/: the teacher and the priors."""
