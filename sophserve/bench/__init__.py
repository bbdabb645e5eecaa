"""Tools that measure: benchmarks, a load client, profiles."""
