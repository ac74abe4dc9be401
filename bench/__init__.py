"""Benchmarks: what things cost, measured by hand and never asserted in a test."""
