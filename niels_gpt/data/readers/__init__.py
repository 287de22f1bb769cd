"""Readers of files, and the records that all sources yield."""
