"""Videos -> shards; ``python data_tools/make_shards --help`` says how."""
