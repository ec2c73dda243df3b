"""The feed: from a bank to batches of augmented images on the student's device."""
