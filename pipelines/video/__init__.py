"""Decoding of video: containers, frames at a steady rate, and the child process that does it."""
