"""What architectures want of images: one file for each. They work in the server, without torch."""
