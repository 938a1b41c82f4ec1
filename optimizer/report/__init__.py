"""Tables, plots, traces and per-request files of what was simulated."""
