"""Building blocks that architectures are written with, and weight loading."""
