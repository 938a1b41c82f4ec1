"""Tables, plots and traces of what was simulated."""
