"""One module for each system that compare.py measures; each is run in that system's own environment."""
