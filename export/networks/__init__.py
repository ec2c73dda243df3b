"""The specs of the loop's networks, one module per network. All images are RGB in [0, 1]."""
