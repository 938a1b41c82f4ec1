"""Mathematical models of the scheduling problem, one file each; `models/formulations/` has them in writing."""
