"""Networks as Flax modules and tables: layers, routings, the two stages, their cost."""
