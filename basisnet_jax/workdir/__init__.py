"""The files of a run's folder: checkpoints, their checksums, the lock, results."""
