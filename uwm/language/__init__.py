"""Instructions as features: encoders, what is kept of them, and what training reads."""
