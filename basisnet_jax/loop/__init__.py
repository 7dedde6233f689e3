"""The training loop: save, evaluate, next batch, step; and the lines that it prints."""
