"""The cache of token files: built once for each source, then mapped."""
