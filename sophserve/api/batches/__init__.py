"""OpenAI's Files and Batch APIs: lines of requests from a file, answered into another, with what is kept of both."""
