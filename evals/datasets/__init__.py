"""Where labelled images come from: folders, tables, shards, and sets that are made on the spot."""
