"""What is particular to Anthropic's API."""
