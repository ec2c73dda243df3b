"""`micro_batch: auto`: find the batch size with which a stage is fastest on this machine, and cache it."""
