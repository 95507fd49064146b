"""Time-outs of a site that depend on each other, in seconds; `tests/flows/runtime/test_timeouts.py` holds their order.

heartbeat (30) < half a silence   one lost heartbeat is no crash
worker kills (30) < cancel (50) < least silence (60)   a cancelled run is never taken for crashed and resumed
processes of a training save (50, `uwm.train.launch`) < child's grace (60)   their starter does not kill them first
"""

HEARTBEAT_SECONDS = 30
"""How often a flow run says that it is alive; the least that Prefect allows."""
MIN_SILENCE_SECONDS = 2 * HEARTBEAT_SECONDS
"""The least time without a heartbeat after which a site may count a run as crashed."""
WORKER_KILL_SECONDS = 30
"""Prefect's process worker kills a cancelled flow run after this long; nobody can set it."""
CANCEL_SECONDS = 50
"""How long a cancellation may take before the server says that the worker is gone."""
FIRST_HEARTBEAT_SECONDS = 600
"""How long a run may take from the worker's hands to its first heartbeat: imports and waiting on a busy machine."""
LEASE_SECONDS = 60
"""A killed holder gives its GPU slot back after this long; the shortest that the server allows."""
GRACE_SECONDS = 60.0
"""How long a child process may take to write its checkpoint before it is killed."""
