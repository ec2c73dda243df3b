"""How recognizable synthesized images are to networks that took no part in making them."""
