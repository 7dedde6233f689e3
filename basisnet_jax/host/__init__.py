"""The machine: processes, devices, files, compiled programs, terminal."""
