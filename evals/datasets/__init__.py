"""Sources of labelled images: folders, tables, shards, and sets that are made on the spot."""
