"""What is particular to OpenAI's API."""
