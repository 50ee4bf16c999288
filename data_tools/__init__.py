"""Tools that make shards from videos and official annotation files, and tools that inspect shards."""
