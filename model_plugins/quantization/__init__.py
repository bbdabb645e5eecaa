"""The on-disk formats of quantized weights that come with sophserve, one file each."""
