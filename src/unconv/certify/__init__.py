"""What can be proven: brackets of delta_k, and stability of codes."""
