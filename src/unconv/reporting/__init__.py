"""The report: figures, and one self-contained HTML page that says how invertible each stage of a network is."""
