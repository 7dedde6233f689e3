"""What a run leaves in its folder: checkpoints, their checksums, the lock, results."""
