"""The feed: read banks and deliver batches of augmented images on the student's device."""
