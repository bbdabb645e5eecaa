"""The SG2260 (BM1690) by way of the tpuv7 runtime, or the vendor's emulator of the chip behind the same interface."""
