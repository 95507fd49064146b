"""The catalog: the episode table, its versions, and what could not become an episode."""
