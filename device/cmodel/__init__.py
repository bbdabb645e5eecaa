"""The cmodel: a functional model of the chip's operators on the host CPU."""
