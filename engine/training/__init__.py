"""Train a student on batches of a bank, and keep the files of a run."""
