"""`micro_batch: auto`: the number of images at once that a stage is fastest with here, measured once."""
