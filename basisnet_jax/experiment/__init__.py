"""A config turned into what a run is made of; the only folder that reads `config.*`."""
