"""What `uwm bench` measures of reading and learning: this code and its rivals, interleaved."""
