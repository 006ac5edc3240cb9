"""What only a CUDA machine can show: correct bytes against torch, and speed against plain pinned copies."""
