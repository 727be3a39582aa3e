"""The implementations that benchmarks compare: our backends and the rebuilt published forms; and their agreement."""
