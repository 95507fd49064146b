"""What Unified World Models are compared with, behind the same protocol: PAD, Diffusion Policy, GR-1."""
