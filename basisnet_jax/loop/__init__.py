"""The training loop: save, evaluate, next batch, step; and what it says."""
