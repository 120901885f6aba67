"""The paper's tables and figures and the project's own experiments, one file each."""
