"""One module a `--mode` of the command line."""
