"""The parts of a run, made from its config; the only folder that reads `config.*`."""
