"""One step of training or evaluation: pure, without a config and without files."""
