"""Generate a bank: the stages from the teacher to a shard, and the workers that run them."""
