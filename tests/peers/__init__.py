"""Programs of others against ours: they are downloaded, never changed."""
