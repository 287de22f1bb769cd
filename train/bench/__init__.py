"""Benchmarks and studies: steps of this project raced against others, and what precision costs."""
