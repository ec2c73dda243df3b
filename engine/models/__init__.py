"""Build and load networks: classifiers, the image generator and the pretrained priors."""
