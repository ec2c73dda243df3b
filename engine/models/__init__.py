"""Networks: the classifiers, their loading, and the pretrained priors."""
