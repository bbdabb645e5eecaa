"""The SG2260 chip, through the tpuv7 runtime."""
