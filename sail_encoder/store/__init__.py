"""Features on disk: files and shards, the journal that says what is complete, and the tables beside them."""
