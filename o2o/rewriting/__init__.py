"""What rewrites are made of: building nodes, reading attributes and constants, clearing what is dead."""
