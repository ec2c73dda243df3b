"""Banks: folders of shards of labelled images, local or at an fsspec URL."""
