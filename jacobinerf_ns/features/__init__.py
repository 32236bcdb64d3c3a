"""Teachers: frozen extractors that say which pixels belong together, and the cache and store of what they say."""
