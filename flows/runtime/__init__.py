"""What carries runs out: task runners, GPU slots, child processes, logs, events."""
