"""Write shards of videos; see ``python data_tools/make_shards --help``."""
