"""How much fits into the engine and how long a step takes: geometry, step-time models, the catalogue."""
