"""Lower bounds on what any schedule can reach, each with a certificate that somebody else can check."""
