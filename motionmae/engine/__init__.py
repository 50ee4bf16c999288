"""Everything that touches DeepSpeed: the engine, its sharded state, precision."""
