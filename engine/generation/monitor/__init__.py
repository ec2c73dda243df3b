"""Who watches a generation of shards: a terminal, a file in the bank, Prometheus, TensorBoard, W&B."""
