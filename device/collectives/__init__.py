"""Collectives between the ranks of a tensor-parallel group."""
