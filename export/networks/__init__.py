"""The networks of the loop as specs, one module a network; images are RGB in [0, 1] at every door."""
