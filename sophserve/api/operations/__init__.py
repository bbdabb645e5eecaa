"""What operators of a server ask for."""
