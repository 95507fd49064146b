"""Any source of episodes to a committed dataset version; no learning, no orchestration."""
